"""Every model with every data set, and the rows of Table 1, as they compose."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from support import ROOT


def composed(*overrides):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("train", overrides=list(overrides))


@pytest.mark.parametrize("model", ["deit", "deit_neutreno", "vit", "vit_neutreno"])
@pytest.mark.parametrize(
    "data", ["digits", "cifar10", "cifar100", "fashion_mnist", "imagenet", "imagenet100", "images"]
)
def test_every_model_composes_with_every_data_set(model, data):
    config = composed(f"model={model}", f"data={data}")
    assert config.model.num_classes == config.data.num_classes
    assert ("lam" in config.attention) == model.endswith("neutreno")


@pytest.mark.parametrize("data", ["python_docs", "wikitext2", "wikitext103", "text"])
def test_text_chooses_the_language_model_and_the_command_line_wins(data):
    assert composed(f"data={data}").attention == composed(f"data={data}", "model=lm_neutreno").attention
    assert "lam" not in composed(f"data={data}", "model=lm").attention
    assert "lam" not in composed(f"data={data}", "attention=softmax").attention
    assert composed(f"data={data}").attention.lam == 0.4


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_rows_of_table_1_differ_in_attention_and_block_alone(size):
    rows = ("softmax", "neutreno", "featscale", "neutreno_featscale")
    configs = [OmegaConf.to_container(composed(f"experiment=table1/deit_{size}_{row}")) for row in rows]
    for config in configs:
        config.pop("paper")
    assert {config.pop("expected")["sd"] for config in configs} == {0.42}  # the difference is that of the row
    built = [(config.pop("attention")["_target_"], config.pop("block")["_target_"]) for config in configs]
    assert len(set(built)) == 4 and all(config == configs[0] for config in configs)
