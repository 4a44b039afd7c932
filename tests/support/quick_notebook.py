"""The notebooks with their longest cells made short: fewer answers, shorter texts."""

SHORTER = {
    "main": {
        "loop=sample_amplified)": "loop=sample_amplified, length=6)",
        "samples=2,\n    max_new_tokens=48": "samples=1,\n    max_new_tokens=4",
    },
    "deep_dive": {
        'if answer["held_out"]]': 'if answer["held_out"]][::40]',
        "max_new_tokens=30, max_leaves=32": "max_new_tokens=8, max_leaves=8",
    },
}


def shorten(notebook, which="main"):
    """Change the cells in place; each of these is there exactly once."""
    for long, short in SHORTER[which].items():
        (cell,) = [c for c in notebook.cells if c.cell_type == "code" and long in c.source]
        cell.source = cell.source.replace(long, short)
