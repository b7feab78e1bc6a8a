"""A logger that fails; under what services file a run."""

from neutreno.config.composing import compose
from neutreno.results import describe_run, tags
from neutreno.runs import group_name
from neutreno.tasks.classification import Classification


def test_a_logger_that_fails_costs_a_warning_not_the_run(tmp_path, caplog):
    from neutreno.callbacks.loggers import log_report

    class Broken:
        def log_metrics(self, metrics):
            raise OSError("no network")

    log_report([Broken()], {}, [], tmp_path / "figure.png")
    assert "did not accept the report" in caplog.text


def test_seeds_of_one_configuration_share_a_group_and_nothing_else_does():
    words = [[], ["seed=3"], ["seed=12", "name=mine", "output_dir=elsewhere"], ["task.lr=0.01"], ["attention.lam=0.4"]]
    groups = [group_name(compose(typed)) for typed in words]
    assert groups[0] == groups[1] == groups[2] == "digits-deit_mini-neutreno-lam0.6"
    assert len(set(groups)) == 3
    long = [f"+recipe.{'x' * 60}{i}={'y' * 20}" for i in range(3)]
    groups = [group_name(compose([*long, seed])) for seed in ("seed=0", "seed=123")]
    assert groups[0] == groups[1] != group_name(compose(long[:2])) and len(groups[0]) == 128


def test_tags_say_data_model_axes_and_what_the_run_was_started_for():
    record = describe_run(compose(["block=featscale", "row=lab/neutreno"]), Classification)
    assert tags(record) == ["digits", "deit-mini", "neutreno λ̃=0.6", "featscale", "lab/neutreno"]
