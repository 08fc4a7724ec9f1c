"""What ``make docs`` needs beside the pages of ``docs/``: generated pages, docstrings, tables, formulas, pictures."""
