"""What the documentation takes from elsewhere: tables and figures from result files, references from the code.

`make tables` (python -m docgen) fills it in, `python -m docgen --check` names what is out of date. How to add a table
is in docs/contributing.md.
"""
