"""What pyproject.toml cannot say: the top-level patches/ folder travels in the wheel as a part of the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["sglang_moe_opt*", "eval*", "loadtest*"]), "sglang_moe_opt.patch_files"],
    package_dir={"sglang_moe_opt.patch_files": "patches"},
)
