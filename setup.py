"""What pyproject.toml cannot say: top-level folders of files travel in the wheel as parts of the package."""

from pathlib import Path

from setuptools import find_packages, setup

FOLDERS = {"sglang_moe_opt.patch_files": "patches", "sglang_moe_opt.deploy_files": "deploy"}
present = {package: folder for package, folder in FOLDERS.items() if Path(__file__).with_name(folder).is_dir()}

setup(
    packages=[*find_packages(include=["sglang_moe_opt*", "eval*", "loadtest*"]), *present],
    package_dir=present,
)
