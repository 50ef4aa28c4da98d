"""Run ``sglang serve`` in this interpreter, where no ``sglang`` script need be on the path."""

import sys

if __name__ == "__main__":
    from sglang.cli.main import main

    sys.argv[1:1] = ["serve"]
    main()
