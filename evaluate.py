"""Every figure of a model: metrics, robustness, cost, similarity of tokens by layer: ``python evaluate.py --help``."""

import os
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here whole; exit_with() says them in a line


@hydra.main(version_base="1.3", config_path="configs", config_name="evaluate")
def main(config: DictConfig) -> None:
    job = HydraConfig.get()
    typed = [override.lstrip("+~").partition("=")[0] for override in job.overrides.task]
    try:
        evaluate(config, dict(job.runtime.choices), typed)
    except Exception as error:
        exit_with(error)  # here, because Hydra would add a line of its own


def evaluate(config: DictConfig, choices: dict[str, str], typed: list[str]) -> None:
    from pathlib import Path

    from lightning.pytorch.utilities import rank_zero_only

    from neutreno import console, results
    from neutreno.callbacks.loggers import log_report, make_loggers
    from neutreno.callbacks.probe import measure_tokens, probed
    from neutreno.cost import check_settings, measure_cost
    from neutreno.errors import InputError
    from neutreno.evaluation import (
        evaluate_crops,
        evaluate_protocols,
        evaluate_run,
        evaluate_weights,
        evaluation_name,
        further_crops,
        model_settings,
        run_settings,
    )
    from neutreno.parallel import check_trainer
    from neutreno.perplexity import perplexities, protocols
    from neutreno.reports.evaluation import render
    from neutreno.reports.figures import LAYERS, plot_similarity
    from neutreno.robustness import check_folders, evaluate_folders
    from neutreno.runs import RunFolder, build
    from neutreno.tasks.language_modeling import LanguageModeling

    console.quiet(rank_zero_only.rank)
    check_trainer(config)
    if config.cost is not None:
        check_settings(**config.cost)
    run = None if config.run is None else RunFolder(config.run)
    if run is not None:
        settings, make = run_settings(run, config, typed), build
        target = run if config.name is None else RunFolder(Path(config.output_dir) / "evaluations", config.name)
    else:
        settings, make = model_settings(config, typed), hydra.utils.instantiate
        target = RunFolder(Path(config.output_dir) / "evaluations", config.name or evaluation_name(settings, choices))
    data = make(settings["data"])
    model = make(settings["model"], **data.model_arguments())
    task = make(settings["task"], model=model)
    robustness = {name: config[name] for name in ("imagenet_c", "imagenet_a", "imagenet_r") if config[name] is not None}
    check_folders(robustness, model, data)
    crop_pcts = further_crops(data, settings["crop_pcts"], "crop_pcts" in typed)
    data.setup("validate")  # training images are not needed
    sliding = OmegaConf.to_container(config.sliding) if OmegaConf.is_config(config.sliding) else config.sliding
    if language := isinstance(task, LanguageModeling):
        sliding = [max(1, data.segment // 8)] if sliding is None else sliding
        protocols(sliding, data.segment)  # refused before the long work
    elif "sliding" in typed:
        raise InputError(f"sliding={config.sliding} is for language models; leave it out")
    target.path.mkdir(parents=True, exist_ok=True)
    corrupt = target.path / "evaluation_corrupt_images.txt"
    rank_zero_only(corrupt.unlink)(missing_ok=True)  # of an earlier evaluation
    data.note_corrupt(corrupt)
    measures = probed(settings["probe"].get("measures", ["cosine"]))
    trainer = hydra.utils.instantiate(
        settings["trainer"],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        _convert_="all",
    )
    if run is None:
        metrics = evaluate_weights(trainer, task, data)
    else:
        metrics = evaluate_run(trainer, task, data, run.last_checkpoint, run.best_checkpoint)
    metrics |= data.baselines() | evaluate_crops(trainer, task, data, crop_pcts)
    metrics |= evaluate_protocols(trainer, task, data)
    found = evaluate_folders(trainer, model, robustness, data)
    if not trainer.is_global_zero:
        return
    task.to(trainer.strategy.root_device)
    cost = perplexity = None
    if language:
        with trainer.precision_plugin.forward_context():
            texts = {split: data.splits[split] for split in ("val", "test")}
            perplexity = perplexities(model, texts, data.segment, sliding, data.eval_batch_size)
        metrics |= {entry["metric"]: entry["ppl"] for entry in perplexity}
    elif config.cost is not None:
        with trainer.precision_plugin.forward_context():
            cost = measure_cost(model, (data.in_chans, data.img_size, data.img_size), **config.cost)
        cost["precision"] = str(trainer.precision)
    inputs = data.probe_batch(settings["probe"]["num_samples"])
    evaluation = {
        "name": target.path.resolve().name,
        "metrics": metrics,
        "robustness": found,
        "corrupt_images": len(data.corrupt.read()),
        "perplexity": perplexity,
        "cost": cost,
        "layers": getattr(model, "layers", LAYERS),
        "oversmoothing": measure_tokens(model, inputs, measures),
        "settings": {
            "run": None if run is None else str(run.path),
            **{key: settings[key] for key in ("data", "model")},
            "precision": str(trainer.precision),
            "limit_val_batches": settings["trainer"].get("limit_val_batches"),
            "crop_pcts": crop_pcts,
            **{k: settings["task"][k] for k in ("inference", "protocols") if k in settings["task"]},
            **robustness,
        },
        **data.record(),
        **results.environment(),
    }
    results.write_json(target.path / "evaluation.json", evaluation)
    page = render(evaluation)
    results.write_text(target.path / "evaluation.md", page)
    title = f"{evaluation['name']}, last checkpoint" if run is not None else evaluation["name"]
    plot_similarity(evaluation["oversmoothing"], target.path / "evaluation.png", title, evaluation["layers"])
    figures = [target.path / "evaluation.png", *task.write_report(target.path, "evaluation_")]
    curves: dict[str, dict[str, list[float]]] = {}
    for row in evaluation["oversmoothing"]:
        if row["measure"] == "cosine":
            curves.setdefault(row["tokens"], {"last": []})["last"].append(row["mean"])
    loggers = make_loggers(config.logger or {}, target.path, group_of(run, choices), "eval")
    for logger in loggers:
        logger.log_hyperparams(evaluation["settings"])
    log_report(loggers, metrics, curves, target.path / "evaluation.png")
    print(f"{page}\nrecord  {target.path / 'evaluation.json'}, .md\nfigure  {', '.join(map(str, figures))}")


def group_of(run, choices: dict[str, str]) -> str:
    """Under which a web service files the evaluation: as its run, by experiment or else data set."""
    from neutreno.results import read_result

    if run is None:
        return choices["experiment"] or choices["data"]
    given = [o.partition("=")[2] for o in read_result(run.path)["overrides"] if o.startswith("experiment=")]
    return given[-1] if given else read_result(run.path)["settings"]["data"]


def exit_with(error: BaseException) -> None:
    from neutreno.errors import report

    sys.exit(report(error))


def prepare(arguments: list[str]) -> list[str]:
    """What people type → what Hydra reads.

    ``evaluate.py RUN`` and ``run=RUN`` → ``run="RUN"``, because a bare path would be a syntax error there. Beside a run
    ``data.KEY=…`` → ``++data.KEY=…``, ``task.KEY`` too: it is the run's key, which what is composed here may not have.
    """

    def is_run(i: int, argument: str) -> bool:
        if i and arguments[i - 1].startswith("-") and "=" not in arguments[i - 1]:  # the value of --cfg and the like
            return False
        return argument.startswith("run=") or (argument[:1] != "-" and ("=" not in argument or os.path.isdir(argument)))

    run = next((i for i, argument in enumerate(arguments) if is_run(i, argument)), None)
    if run is None:
        return arguments
    prepared = [f"++{a}" if a.startswith(("data.", "task.")) else a for a in arguments]
    path = arguments[run].removeprefix("run=").strip("'\"").replace('"', '\\"')
    prepared[run] = f'run="{path}"'
    return prepared


if __name__ == "__main__":
    sys.argv[1:] = prepare(sys.argv[1:])
    try:
        main()
    except (Exception, KeyboardInterrupt) as error:
        exit_with(error)
