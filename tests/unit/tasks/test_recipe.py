"""DeiT's recipe against timm's own factories, called with the arguments that DeiT published; Segmenter's."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from support import ROOT, make_image
from timm.data import create_transform
from timm.data.distributed_sampler import RepeatAugSampler
from timm.layers import DropPath
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.scheduler import create_scheduler_v2

from neutreno.data.loading import TrainBatchSampler
from neutreno.models.vit import VisionTransformer

PLAIN = {"precision": "32-true", "gradient_clip_val": None}  # what an optimizer asks of its trainer


@pytest.fixture(scope="module")
def recipe():
    def build(*overrides):
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            config = compose("train", overrides=["data=imagenet", "model=deit_neutreno", "data.root=x", *overrides])
        task = instantiate(config.task, model=instantiate(config.model), _convert_="all")
        task._trainer = SimpleNamespace(max_epochs=config.trainer.max_epochs, datamodule=None, strategy=None, **PLAIN)
        return config, instantiate(config.data, _convert_="all"), task

    return build


def test_learning_rates_of_300_epochs_are_those_of_timms_scheduler_for_deits_arguments(recipe):
    _, _, task = recipe()
    ours = task.configure_optimizers()
    optimizer, schedule = ours["optimizer"], ours["lr_scheduler"]["scheduler"]
    reference_optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=5e-4 * 1024 / 512)
    arguments = {"sched": "cosine", "num_epochs": 300, "warmup_epochs": 5, "warmup_lr": 1e-6, "min_lr": 1e-5}
    reference, epochs = create_scheduler_v2(reference_optimizer, **arguments)
    assert epochs == 300 and ours["lr_scheduler"]["interval"] == "epoch"
    rates, expected = [], []
    for epoch in range(300):  # as DeiT's main.py: train an epoch, then lr_scheduler.step(epoch)
        rates.append({g["lr"] for g in optimizer.param_groups})
        expected.append(reference_optimizer.param_groups[0]["lr"])
        task.trainer.current_epoch = epoch
        task.lr_scheduler_step(schedule, None)
        reference.step(epoch)
    assert all(len(rate) == 1 for rate in rates)
    np.testing.assert_allclose([rate.pop() for rate in rates], expected, rtol=1e-12)
    assert expected[0] == expected[1] == 1e-6 and max(expected) == pytest.approx(1e-3, rel=1e-2)
    assert expected[-1] == pytest.approx(1e-5, rel=2e-2)


@pytest.mark.parametrize("batch", [256, 1024, 4096])
def test_the_peak_rate_follows_from_the_global_batch(recipe, batch):
    _, _, task = recipe(f"data.batch_size={batch}")
    assert task.opt["lr"] == pytest.approx(5e-4 * batch / 512)


def test_parameter_groups_are_those_of_timms_model(recipe):
    _, _, task = recipe()
    reference = timm.create_model("deit_tiny_patch16_224")

    def decays(model, optimizer):
        names = {id(p): name for name, p in model.named_parameters()}
        return {names[id(p)]: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}

    expected = decays(reference, create_optimizer_v2(reference, "adamw", lr=1e-3, weight_decay=0.05))
    ours = task.configure_optimizers()["optimizer"]
    assert decays(task.model, ours) == expected
    assert (
        isinstance(ours, torch.optim.AdamW) and ours.defaults["betas"] == (0.9, 0.999) and ours.defaults["eps"] == 1e-8
    )
    undecayed = {name for name, decay in expected.items() if decay == 0}
    assert {"cls_token", "pos_embed", "norm.weight", "head.bias"} <= undecayed and "head.weight" not in undecayed


def test_transforms_are_timms_for_deits_arguments(recipe):
    _, data, _ = recipe()
    published = {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25, "re_mode": "pixel", "re_count": 1}
    train = create_transform(224, is_training=True, color_jitter=0.4, interpolation="bicubic", **published)
    assert repr(data.train_transform()) == repr(train)

    def seeded(transform, image):
        random.seed(5), np.random.seed(5), torch.manual_seed(5)
        return transform(image)

    for seed in range(4):
        image = make_image(seed, 300)
        torch.testing.assert_close(seeded(data.train_transform(), image), seeded(train, image), rtol=0, atol=0)


def test_evaluation_resizes_to_256_and_crops_224_as_deits_own_code_does(recipe):
    from torchvision import transforms

    _, data, _ = recipe()
    deits = transforms.Compose(
        [
            transforms.Resize(256, interpolation=3),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    for size in ((300, 400), (500, 260)):
        image = make_image(0, 500).resize(size)
        torch.testing.assert_close(data.eval_transform()(image), deits(image), rtol=0, atol=1e-6)


def test_mixing_smoothing_average_and_stochastic_depth_are_deits(recipe):
    config, _, task = recipe()
    mixup = task.mixup
    assert (mixup.mixup_alpha, mixup.cutmix_alpha, mixup.switch_prob, mixup.mix_prob) == (0.8, 1.0, 0.5, 1.0)
    assert mixup.label_smoothing == 0.1 and mixup.num_classes == 1000 and mixup.mode == "batch"
    assert task.ema.decay == 0.99996 and config.data.batch_size == 1024 and config.data.repeats == 3
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in task.model.blocks]
    np.testing.assert_allclose(rates, np.linspace(0, 0.1, 12), atol=1e-7)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_repeated_augmentation_deals_out_as_timms_sampler_does(world):
    samples, batch = 1024, 64
    for rank in range(world):
        ours = TrainBatchSampler(samples, batch, seed=0, world=world, rank=rank, repeats=3)
        theirs = RepeatAugSampler(range(samples), num_replicas=world, rank=rank, num_repeats=3, shuffle=False)
        drawn = ours.order()[::3].tolist()  # timm draws another permutation; from there on, all is the same
        expected = [drawn[i] for i in list(theirs)]
        assert [index for given in ours for index, _ in given] == expected
        seeds = [seed for given in ours for _, seed in given]
        assert len(set(seeds)) == len(seeds)  # each copy is augmented anew


def test_repeated_augmentation_sees_a_third_of_the_images_three_times_each():
    sampler = TrainBatchSampler(999, 9, seed=0, repeats=3)
    given = [index for batch in sampler for index, _ in batch]
    assert len(given) == 999 and sorted(np.unique(given, return_counts=True)[1]) == [3] * 333
    sampler.set_epoch(1)
    assert {index for batch in sampler for index, _ in batch} != set(given)


def test_ade20k_is_trained_as_segmenter():
    """SGD with Nesterov's momentum and no decay; (1 − t / T)^0.9 from 1e-3 to 1e-5, moved on at every iteration."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("train", overrides=["data=ade20k"])
    model = instantiate(config.model)
    task = instantiate(config.task, model=model, _convert_="all")
    steps = 7
    task._trainer = SimpleNamespace(max_epochs=3, datamodule=SimpleNamespace(steps_per_epoch=steps), **PLAIN)
    made = task.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]
    assert type(optimizer) is torch.optim.SGD and schedule["interval"] == "step"
    assert all(g["nesterov"] and g["momentum"] == 0.9 and g["weight_decay"] == 0 for g in optimizer.param_groups)
    for t in range(3 * steps):
        schedule["scheduler"].step_update(t)
        expected = (1e-3 - 1e-5) * (1 - t / (3 * steps)) ** 0.9 + 1e-5
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-12)
    assert max(m.drop_prob for m in model.encoder.modules() if isinstance(m, DropPath)) == pytest.approx(0.1)
    assert not any(isinstance(m, DropPath) for m in model.decoder.modules())
    assert {m.p for m in model.encoder.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}
    assert {m.p for m in model.decoder.modules() if isinstance(m, torch.nn.Dropout)} == {0.1}
    assert all(block.attn.attn_drop == 0.1 for block in model.decoder.blocks)
    assert (config.trainer.max_epochs, config.data.batch_size, config.data.img_size) == (64, 8, 512)


def test_ade20ks_schedule_spans_every_iteration_of_its_20210_images():
    """Segmenter's loader keeps the last batch, here of two images, and iter_max is its length times the epochs."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("train", overrides=["data=ade20k", "data.root=x", "model=segmenter"])
    data = instantiate(config.data, _convert_="all")
    data.splits = {"train": range(20_210)}
    loader = torch.utils.data.DataLoader(range(20_210), batch_size=config.data.batch_size)
    task = instantiate(config.task, model=instantiate(config.model), _convert_="all")
    assert data.whole_epoch == len(loader) == 2527
    assert task.spans(config.trainer.max_epochs, data) == (64 * len(loader), 0) == (161_728, 0)
    sampler = TrainBatchSampler(20_210, config.data.batch_size, seed=0, drop_last=config.data.drop_last)
    assert len(sampler) == len(loader) and len(list(sampler)[-1]) == 2


@pytest.mark.parametrize("trainer", ["default", "gpu", "ddp", "fsdp", "slurm"])
def test_tables_2_and_3_train_in_float32_on_any_device_unless_asked(trainer):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        for row in ("table2/softmax_deit_tiny", "table3/softmax"):
            words = [f"experiment={row}", f"trainer={trainer}"]
            assert compose("train", overrides=words).trainer.precision == "32-true"
            chosen = compose("train", overrides=[*words, "trainer.precision=bf16-mixed"])
            assert chosen.trainer.precision == "bf16-mixed"
        table1 = compose("train", overrides=["experiment=table1/deit_tiny_softmax", f"trainer={trainer}"])
    assert table1.trainer.precision == ("32-true" if trainer == "default" else "bf16-mixed")


def optimizer_of(*words, **trainer):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("train", overrides=["model.depth=2", *words])
    task = instantiate(config.task, model=instantiate(config.model), _convert_="all")
    data = SimpleNamespace(steps_per_epoch=5)
    task._trainer = SimpleNamespace(max_epochs=3, datamodule=data, strategy=None, **{**PLAIN, **trainer})
    return task.configure_optimizers()


@pytest.mark.parametrize("name", ["lion", "sgd", "muon", "lamb", "adafactor", "rmsprop"])
@pytest.mark.parametrize("data", ["digits", "digit_scenes", "ade20k"])
def test_an_optimizer_takes_the_place_of_a_recipes_by_its_name_alone(data, name):
    optimizer = optimizer_of(f"data={data}", f"task.opt={name}")["optimizer"]
    assert name in type(optimizer).__name__.lower()
    assert {g["initial_lr"] for g in optimizer.param_groups} == {2e-3 if data == "digits" else 1e-3}


def test_an_optimizer_of_torch_is_fused_unless_its_gradients_are_clipped_in_half_precision():
    def fused(*words, **trainer):
        return optimizer_of(*words, **trainer)["optimizer"].defaults.get("fused")

    assert fused() and fused("task.opt=sgd") and fused(gradient_clip_val=1.0) and fused(precision="bf16-mixed")
    assert not fused(gradient_clip_val=1.0, precision="bf16-mixed")
    assert fused("+task.opt_args.fused=false") is False and fused("task.opt=lion") is None
    assert not fused("+task.opt_args.foreach=true") and not fused("+task.opt_args.differentiable=true")


def test_an_optimizer_around_another_is_made_and_settings_of_its_own_are_refused():
    assert type(optimizer_of("task.opt=lookahead_adamw")["optimizer"]).__name__ == "Lookahead"
    for key, value in {"lr": 0.5, "weight_decay": 0.5, "opt": "sgd", "layer_decay": 0.5}.items():
        with pytest.raises(Exception, match=rf"task\.opt_args\.{key} is a setting of its own: task\.{key}="):
            optimizer_of(f"+task.opt_args={{{key}:{value}}}")
    with pytest.raises(Exception, match=r"task\.opt=adahessian needs second derivatives"):
        optimizer_of("task.opt=adahessian")


@pytest.mark.parametrize("schedule", ["cosine", "linear", "poly", "tanh", "constant"])
def test_every_schedule_warms_up_and_all_but_one_fall_to_the_least_rate(schedule):
    made = optimizer_of(f"+task.schedule={schedule}", "task.warmup_epochs=1")
    rates = []
    for step in range(16):
        made["lr_scheduler"]["scheduler"].step_update(step)
        rates.append(made["optimizer"].param_groups[0]["lr"])
    assert rates[0] == 1e-6 and max(rates) <= 2e-3 and rates[:5] == sorted(rates[:5])
    assert rates[-1] == pytest.approx(2e-3 if schedule == "constant" else 1e-5, rel=0.35)


def test_rates_fall_by_layer_from_the_head_to_the_embedding():
    optimizer = optimizer_of("+task.layer_decay=0.5")["optimizer"]
    scales = {group["lr_scale"] for group in optimizer.param_groups}
    assert scales == {1.0, 0.5, 0.25, 0.125}  # norm and head, two blocks, embedding
    model = timm.create_model("deit_tiny_distilled_patch16_224", depth=2)
    own = VisionTransformer("tiny", depth=2, distilled=True)
    for network in (model, own):
        groups = param_groups_layer_decay(network, 0.05, layer_decay=0.5)
        first = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
        assert first[id(network.dist_token)] == first[id(network.cls_token)] == 0.125
    with pytest.raises(Exception, match="does not say which weights make a layer"):
        optimizer_of("data=digit_scenes", "+task.layer_decay=0.5")
