"""What configs, recipes and rows of the paper's tables compose to."""

import re

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from support import ROOT

from neutreno.config.composing import compose as compose_run
from neutreno.config.trust import check_trusted
from neutreno.runs import default_name
from neutreno.tablefiles import read_table


def composed(*overrides):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def test_default_is_neutreno_mini_on_digits():
    config = composed()
    assert config.attention._target_ == "neutreno.attention.NeutrenoAttention" and config.attention.lam == 0.6
    assert config.model.size == "mini" and config.data._target_.endswith("Digits")


def test_the_data_set_picks_the_recipe_and_the_command_line_wins():
    assert composed("data=imagenet").model.size == "tiny"
    assert composed("data=imagenet", "model.size=base", "attention.lam=0.2").model.attention.lam == 0.2


def test_a_baseline_and_its_variant_differ_in_the_attention_alone():
    variants = [OmegaConf.to_container(composed(f"model={m}")) for m in ("deit", "deit_neutreno")]
    assert variants[0].pop("attention") != variants[1].pop("attention")
    assert variants[0] == variants[1]


@pytest.mark.parametrize("group", ["attention", "block", "model", "data", "recipe"])
def test_evaluate_may_build_all_that_the_configs_name(group):
    for file in (ROOT / "configs" / group).glob("*.yaml"):
        for target in re.findall(r"_target_: (\S+)", file.read_text()):
            check_trusted({"_target_": target})


def test_table_3_is_the_released_codes_recipe():
    softmax, neutreno = (composed(f"experiment=table3/{row}", "data.root=x") for row in ("softmax", "neutreno"))
    assert neutreno.attention.lam == 0.4 and (neutreno.data.batch_size, neutreno.data.sequence_length) == (96, 256)
    assert (neutreno.task.opt, neutreno.task.lr, neutreno.task.warmup_steps) == ("adam", 2.5e-4, 2000)
    assert (neutreno.trainer.max_steps, neutreno.trainer.gradient_clip_val) == (500_000, 0.25)
    assert neutreno.model.size == "small" and neutreno.model.drop_rate == 0.1 and neutreno.model.attn_drop_rate == 0
    assert neutreno.model.cutoffs == [20_000, 40_000, 200_000]
    configs = [OmegaConf.to_container(config) for config in (softmax, neutreno)]
    for key in ("attention", "paper"):
        assert configs[0].pop(key) != configs[1].pop(key)
    assert configs[0] == configs[1]


def test_rows_of_table_2_differ_in_attention_and_encoder_alone():
    """And each encoder is the run that the row of Table 1 makes."""
    rows = ("softmax", "neutreno")
    composed_rows = [composed(f"experiment=table2/{row}_deit_tiny") for row in rows]
    starts = [config.model.encoder_weights for config in composed_rows]
    configs = [OmegaConf.to_container(config) for config in composed_rows]
    assert [config["model"].pop("encoder_weights") for config in configs] != starts  # made of seed and output_dir
    for key in ("attention", "paper"):
        assert configs[0].pop(key) != configs[1].pop(key)
    assert configs[0] == configs[1]
    for row, start in zip(rows, starts, strict=True):
        experiment = f"experiment=table1/deit_tiny_{row}"
        assert start == f"outputs/{default_name(compose_run([experiment]))}"


def test_the_data_set_picks_the_family_of_models_and_the_command_line_wins():
    assert composed("data=digit_scenes").model._target_.endswith("Segmenter")
    assert "lam" in composed("data=digit_scenes").attention
    assert "lam" not in composed("data=ade20k", "model=segmenter").attention
    assert "lam" not in composed("experiment=table2/softmax_deit_tiny").attention


def test_adaptation_starts_from_softmax_weights():
    import timm

    for size in ("tiny", "small"):
        config = composed(f"experiment=table1/deit_{size}_neutreno_adaptation")
        assert config.model.weights in timm.list_pretrained() and config.trainer.max_epochs == 100
    assert read_table("proxy").needs == {
        f"deit_{size}_neutreno_adaptation": {"model.weights": f"deit_{size}_softmax"} for size in ("tiny", "small")
    }
