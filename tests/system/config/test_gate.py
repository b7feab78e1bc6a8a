"""The gate: what may not be set is said in a line that names the key, before anything is built."""

import pytest
from support import assert_one_line_error, run_forked

WORDS = {
    "lam=0.4": ["no key lam", "did you mean attention.lam?"],
    "lr=0.1": ["no key lr", "did you mean task.lr?"],
    "epochs=3": ["no key epochs; did you mean trainer.max_epochs?"],
    "output_root=x": ["no key output_root; did you mean output_dir?"],
    "optimizer=sgd": ["no key optimizer; did you mean task.opt?"],
    "experiment=deit_tiny_neutreno": [
        "no option experiment=deit_tiny_neutreno; did you mean table1/deit_tiny_neutreno?"
    ],
    "table=lab": ["no key table; --help lists the keys and groups"],
    "row=[1]": ["row=[1] should be a valid string"],
    "experiment=table1": ["a folder of options", "table1/deit_tiny_neutreno", "table1/deit_small_softmax"],
    "attention=sofmax": ["no option attention=sofmax; did you mean softmax?"],
    "modle=deit": ["no key modle", "did you mean model?"],
    "task.l=1": ["no key task.l; did you mean task.lr?"],
    "+lam=0.4": ["no key lam: nothing takes it; did you mean attention.lam?"],
    "+optimizer=sgd": ["no key optimizer: nothing takes it; did you mean task.opt?"],
    "+attention.lamb=0.4": ["no key attention.lamb: NeutrenoAttention has no", "did you mean attention.lam?"],
    "+task.learning_rate=1": ["no key task.learning_rate", "did you mean task.lr?"],
    "+trainer.max_epoch=3": ["no key trainer.max_epoch", "did you mean trainer.max_epochs?"],
    "+probe.every=3": ["no key probe.every: nothing takes it"],
    "+recipe.foo=1": ["recipe.foo", "this model and data set do not use it"],
    "+checkpoint.x=1": ["no key checkpoint.x: nothing takes it"],
    "attention.dim=3": ["no key attention.dim; did you mean attention.lam?"],
    "+attention.dim=3": ["attention.dim cannot be set: what builds NeutrenoAttention gives it"],
    "attention._target_=mine.Rule": ["attention._target_=mine.Rule", "no module mine", "PYTHONPATH"],
    "attention._target_=neutreno.attention.Softmax": [
        "neutreno.attention has no Softmax",
        "did you mean SoftmaxAttention?",
    ],
    "attention._target_=text": ["attention._target_=text is not the dotted path"],
    "model.attention={_target_:neutreno.attention.SoftmaxAttention,_partial_:true}": [
        "model.attention is what attention=…"
    ],
    "+attention@model.attention=linear": ["model.attention is what attention=…"],
    "~model.block": ["model.block is what block=…"],
    "~attention": ["needs the axis attention; choose attention=…"],
    "++variants={attention:neutreno}": ["variants is declared in the model's file"],
    "++labels={task.lr:lr}": ["labels is declared in the model's file"],
    "family=x": ["family is declared in the model's file"],
    "++recipe={foo:0.3}": ["recipe is a group of files"],
    "++trainer.callbacks=[]": ["trainer.callbacks cannot be set: the project sets it"],
    "++trainer.fast_dev_run=true": ["trainer.fast_dev_run cannot be set: the project sets it"],
    "++trainer.min_epochs=x": ["trainer.min_epochs=x should be a valid integer"],
    "trainer._target_=os.system": ["trainer._target_=os.system is no lightning.Trainer"],
    "++probe._target_=builtins.dict": ["probe._target_ cannot be set: there is no class to name"],
    "trainer.plugins=[1]": ["trainer.plugins=[1] (item 0) should be a valid dictionary"],
    "trainer.plugins=[{_target_:os.system,command:ls}]": ["'os.system' is blocklisted"],
    "trainer.devices=abc": ["trainer.devices=abc is not a number of devices"],
    "trainer.strategy={a:b}": ["trainer.strategy", "does not name a class by _target_"],
    "trainer.strategy=dpp": ["trainer.strategy=dpp is not known to Lightning; did you mean ddp?"],
    "attention._partial_=false": ["attention._partial_ has to be true"],
    "attention.lam=${recipe.nope}": ["attention.lam refers to recipe.nope, which does not exist"],
    "data=null": ["no option data=null; available: ", "digits"],
    "experiment=null": ["no option experiment=null; available: ", "table3/softmax"],
    "model=3": ["no option model=3; available: ", "deit_neutreno"],
    "name=": ["name='' is blank; give the name of a folder"],
    "data.augment=1": ["no key data.augment; --help lists the keys and groups"],
    "probe.at_steps=10": ["probe.at_steps=10"],
    "probe.at_steps=[0,-5]": ["probe.at_steps"],
    "probe.metrics=[cosin]": ["probe.metrics: no layer-wise metric cosin; available: cosine"],
    "seed=-1": ["seed=-1 should be greater than or equal to 0"],
    "seed=1.5": ["seed=1.5 should be a valid integer"],
    "resume=maybe": ["resume=maybe should be a valid boolean"],
    "model.depth=100000000000": ["model.depth=100000000000 should be less than or equal to 10000"],
    "data.batch_size=nan": ["data.batch_size=nan should be a valid integer"],
    "trainer.precision=16-mix": ["trainer.precision=16-mix should be '32-true'", "'16-mixed'"],
    "name=0": ["name=0 should be a valid string"],
    "name=' '": ["name=' ' is blank"],
    "name='a\tb'": ["name=a b holds a character that cannot be printed"],
    "output_dir=": ["output_dir='' is blank"],
    "output_dir=' '": ["output_dir=' ' is blank"],
    "task.ema_decay=1": ["task.ema_decay=1 should be less than 1"],
    "trainer.gradient_clip_val=-1": ["trainer.gradient_clip_val=-1 should be greater than or equal to 0"],
    "trainer.gradient_clip_val=nan": ["trainer.gradient_clip_val=nan should be a finite number"],
    "trainer.check_val_every_n_epoch=0": ["trainer.check_val_every_n_epoch=0 should be greater than or equal to 1"],
    "+trainer.val_check_interval=500": ["trainer.val_check_interval=500, but an epoch has 39 batches"],
    "+trainer.limit_test_batches=0.3": ["trainer.limit_test_batches=0.3 is less than one of"],
    "+trainer.val_check_interval=0": ["trainer.val_check_interval=0 should be a number of batches"],
    "+trainer.val_check_interval=-1": ["trainer.val_check_interval=-1 should be a number of batches"],
    "trainer.limit_train_batches=0": ["trainer.limit_train_batches=0 should be a number of batches"],
    "trainer.limit_val_batches=0": ["trainer.limit_val_batches=0 should be a number of batches"],
    "trainer.limit_val_batches=0.0": ["trainer.limit_val_batches=0.0 should be a number of batches"],
    "+trainer.min_epochs=-3": ["trainer.min_epochs=-3 should be greater than or equal to 1"],
    "+trainer.max_time=1": ["trainer.max_time cannot be set: the project sets it"],
    "+paper.x=1": ["paper.x is what an experiment's file says", "cannot be set on the command line"],
    "attention=null": ["no option attention=null; available: ", "softmax"],
    "model=null": ["no option model=null; available: ", "deit_neutreno"],
    "model.mlp_ratio=1e10": ["model.mlp_ratio=10000000000.0 should be less than or equal to 1024"],
    "model.drop_path_rate=1.5": ["model.drop_path_rate=1.5 should be less than or equal to 0.99"],
    "+model.drop_rate=1": ["model.drop_rate=1 should be less than or equal to 0.99"],
}


@pytest.mark.parametrize("word", WORDS)
def test_a_word_that_is_wrong_gets_one_line_that_helps(word, tmp_path):
    assert_one_line_error(run_forked("train.py", word, cwd=tmp_path), *WORDS[word])
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("limit", ["trainer.limit_train_batches=10", "+trainer.overfit_batches=10"])
def test_an_interval_of_validations_is_held_against_the_batches_that_run(limit, tmp_path):
    done = run_forked("train.py", limit, "+trainer.val_check_interval=20", cwd=tmp_path)
    assert_one_line_error(done, "trainer.val_check_interval=20, but an epoch has 10 batches")


def test_all_that_a_stage_finds_is_said_together(tmp_path):
    words = ["attention.lam=-1", "task.lr=abc", "+trainer.foo=1", "+data.foo=2", "model.depth=0"]
    done = run_forked("train.py", *words, cwd=tmp_path)
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and len(lines) == len(words) and all(line.startswith("error: ") for line in lines)
    for key in ("attention.lam=-1", "task.lr=abc", "trainer.foo", "data.foo", "model.depth=0"):
        assert sum(key in line for line in lines) == 1, key
    done = run_forked("train.py", "modle=deit", "lr=1", "attention=sofmax", "seed=1", cwd=tmp_path)
    assert done.stderr.count("error: ") == len(done.stderr.splitlines()) == 3


def test_a_strength_that_nothing_takes_says_what_would(tmp_path):
    done = run_forked("train.py", "model=deit", "attention.lam=0.4", cwd=tmp_path)
    assert_one_line_error(done, "no key attention.lam", "attention=neutreno")
    done = run_forked("train.py", "model=deit", "recipe.lam=0.4", cwd=tmp_path)
    assert_one_line_error(done, "recipe.lam", "do not use it")
    done = run_forked("train.py", "model=timm", "model.name=vit_tiny_patch16_224", "attention=xsa", cwd=tmp_path)
    assert_one_line_error(done, "model=timm has no axis attention")


SWEEPS = {
    "launcher.max_parallel=1,2": "launcher applies to the whole sweep; give a single value",
    "output_dir=a,b": "output_dir applies to the whole sweep; give a single value",
    "seed=range(0,0)": "the sweep is empty",
}


@pytest.mark.parametrize("word", SWEEPS)
def test_a_sweep_that_cannot_be_what_it_says_is_refused(word, tmp_path):
    assert_one_line_error(run_forked("train.py", "-m", word, cwd=tmp_path), SWEEPS[word])
    assert not list(tmp_path.rglob("config.yaml"))


def test_a_record_cannot_make_tables_import_or_read_the_environment(tmp_path):
    import json
    import os

    from support import make_run

    run = make_run(tmp_path / "runs/a", "experiment=table1/deit_tiny_neutreno")
    (tmp_path / "evilmod").mkdir()
    (tmp_path / "evilmod/__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    planted = ["trainer=${oc.env:HOME}", "hydra.searchpath=[pkg://evilmod]", "++foo={bar:${oc.env:HOME}}"]
    file = run / "result.json"
    record = json.loads(file.read_text())
    execution = [*record["execution"], "hydra.searchpath", "foo"]
    home = "${oc.env:HOME}"

    def importable():
        import sys

        sys.path.insert(0, str(tmp_path))

    for row in (None, f"lab/{home}", f"{home}/x", "../../etc/x", "lab"):
        for experiment in ("table1/deit_tiny_neutreno", home, "../train"):
            words = [f"experiment={experiment}", *planted]
            file.write_text(json.dumps(record | {"overrides": words, "execution": execution, "row": row}))
            done = run_forked("scripts/tables.py", "runs", cwd=tmp_path, setup=importable)
            assert done.returncode == 0 and done.stdout.count("| runs ") == 1, done.stderr
            known = row is None and experiment.startswith("table1")
            assert ("departs" not in done.stdout) == known, (row, experiment)
            assert not (tmp_path / "ran").exists() and f"{os.environ['HOME']}" not in done.stdout
