"""Metrics and over-smoothing curve of a run folder, as at the end of its training: ``python evaluate.py RUN``."""

import os
import re
import sys

import hydra
from omegaconf import DictConfig

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here whole; exit_with() says them in a line


@hydra.main(version_base="1.3", config_path="configs", config_name="evaluate")
def main(config: DictConfig) -> None:
    try:
        evaluate(config)
    except Exception as error:
        exit_with(error)  # here, because Hydra would add a line of its own


def evaluate(config: DictConfig) -> None:
    run_folder = config.run  # an error here comes before the slow imports

    from lightning.pytorch.utilities import rank_zero_only

    from neutreno import console, results
    from neutreno.callbacks.probe import curve_rows, measure_similarity
    from neutreno.evaluation import evaluate_run
    from neutreno.reports.figures import plot_similarity
    from neutreno.runs import RunFolder, build

    console.quiet(rank_zero_only.rank)
    run = RunFolder(run_folder)
    settings = run.config()
    data = build(settings["data"] | {k: v for k, v in config.data.items() if v is not None})
    model = build(settings["model"] | {"weights": None})
    task = build(settings["task"], model=model)
    data.setup()
    for key in ("precision", "limit_val_batches"):
        config.trainer[key] = config.trainer[key] or settings["trainer"].get(key)
    trainer = hydra.utils.instantiate(
        config.trainer,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        _convert_="all",
    )
    metrics = evaluate_run(trainer, task, data, run.last_checkpoint, run.best_checkpoint)
    if not trainer.is_global_zero:
        return
    inputs = data.probe_batch(settings["probe"]["num_samples"])
    rows = curve_rows(measure_similarity(task, inputs), len(inputs))
    results.write_json(
        run.path / "evaluation.json", {"metrics": metrics, "oversmoothing": rows} | results.environment()
    )
    plot_similarity(rows, run.path / "evaluation.png", f"{run.path.resolve().name}, last checkpoint")
    for name, value in metrics.items():
        print(f"{name:20} {value:.4f}")
    curve = [row["mean"] for row in rows if row["tokens"] == "all"]
    print(f"similarity of tokens {curve[1]:.3f} after the first block, {curve[-1]:.3f} after the last")
    print(f"record               {run.path / 'evaluation.json'}\nfigure               {run.path / 'evaluation.png'}")


def exit_with(error: BaseException) -> None:
    from neutreno.errors import report

    sys.exit(report(error))


def quote_run(arguments: list[str]) -> list[str]:
    """``evaluate.py RUN`` and ``run=RUN`` → Hydra's ``run="RUN"``: a bare path would be a syntax error there."""
    for i, argument in enumerate(arguments):
        bare = not argument.startswith("-") and not re.match(r"[~+]*(run|data|trainer|hydra)\b[\w./@]*=", argument)
        if bare or argument.startswith("run="):
            path = argument.removeprefix("run=").strip("'\"").replace('"', '\\"')
            return [*arguments[:i], f'run="{path}"', *arguments[i + 1 :]]
    return arguments


if __name__ == "__main__":
    sys.argv[1:] = quote_run(sys.argv[1:])
    try:
        main()
    except (Exception, KeyboardInterrupt) as error:
        exit_with(error)
