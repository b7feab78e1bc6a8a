from neutreno.config.composing import compose
from neutreno.runs import default_name
from support import make_run

TWO_ROWS = """
title: Mine against theirs
rows:
  theirs: model=deit
  mine + λ̃=0.2: model=deit_neutreno attention.lam=0.2
"""


def write(folder, text, name="mine"):
    file = folder / "conf/table" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def run_of(table, label, output, seed=0, more=(), **kwargs):
    """A run folder as ``reproduce`` would leave it for a row."""
    words = table.words(label, seed, [*more, f"output_dir={output}"])
    return make_run(output / default_name(compose(words, config_dirs=table.config_dirs)), *words,
                    config_dirs=table.config_dirs, **kwargs)  # fmt: skip


def covering(rows):
    """Of rows, given as ``{row: words}``, those with a word that no earlier one has."""
    seen, kept = set(), []
    for row, words in rows.items():
        if not seen.issuperset(words):
            kept.append(row)
        seen.update(words)
    return kept


def rows_in(page):
    """``[(row, seeds), …]`` of the tables printed."""
    lines = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| ")]
    return [(line[0].strip(), line[1].strip()) for line in lines if line[0].strip() != "runs"]
