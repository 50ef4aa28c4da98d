"""Run ``sglang serve`` in this interpreter, where no ``sglang`` script need be on the path.

Python runs the top of this file once more in every process that the server spawns, before that imports SGLang.
"""

import sys

from sglang_moe_opt import quick_imports

quick_imports.begin()  # until the plugin is loaded

if __name__ == "__main__":
    from sglang.cli.main import main

    sys.argv[1:1] = ["serve"]
    main()
