"""A logger that fails."""


def test_a_logger_that_fails_costs_a_warning_not_the_run(tmp_path, caplog):
    from neutreno.callbacks.loggers import log_report

    class WandbLogger:
        @property
        def experiment(self):
            raise OSError("no network")

    log_report([WandbLogger()], {}, {}, tmp_path / "figure.png")
    assert "did not accept the report" in caplog.text
