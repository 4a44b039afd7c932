"""The notebook with its longest cells made short: fewer answers, shorter texts."""

SHORTER = {
    'if answer["held_out"]]': 'if answer["held_out"]][::40]',
    "LENGTH = 24": "LENGTH = 6",
    "samples=4,\n    max_new_tokens=48": "samples=1,\n    max_new_tokens=4",
    "max_new_tokens=30, max_leaves=32": "max_new_tokens=8, max_leaves=8",
}


def shorten(notebook):
    """Change the cells in place; each of these is there exactly once."""
    for long, short in SHORTER.items():
        (cell,) = [cell for cell in notebook.cells if long in cell.source]
        cell.source = cell.source.replace(long, short)
