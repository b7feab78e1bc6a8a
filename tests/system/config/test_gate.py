"""The gate: what may not be set is said in a line that names the key, before anything is built."""

import pytest
from support import assert_one_line_error, run_forked

WORDS = {
    "lam=0.4": ["no key lam", "did you mean attention.lam?"],
    "lr=0.1": ["no key lr", "did you mean task.lr?"],
    "epochs=3": ["did you mean trainer.max_epochs?"],
    "output_root=x": ["did you mean output_dir?"],
    "optimizer=sgd": ["did you mean task.opt?"],
    "experiment=deit_tiny_neutreno": ["did you mean table1/deit_tiny_neutreno?"],
    "table=lab": ["no key table"],
    "row=[1]": ["row=[1]"],
    "experiment=table1": ["a folder of options", "table1/deit_tiny_neutreno", "table1/deit_small_softmax"],
    "attention=sofmax": ["no option attention=sofmax; did you mean softmax?"],
    "modle=deit": ["no key modle", "did you mean model?"],
    "task.l=1": ["no key task.l"],
    "+lam=0.4": ["no key lam: nothing takes it; did you mean attention.lam?"],
    "+optimizer=sgd": ["no key optimizer: nothing takes it; did you mean task.opt?"],
    "+attention.lamb=0.4": ["no key attention.lamb", "did you mean attention.lam?"],
    "+task.learning_rate=1": ["no key task.learning_rate", "did you mean task.lr?"],
    "+trainer.max_epoch=3": ["no key trainer.max_epoch", "did you mean trainer.max_epochs?"],
    "+probe.every=3": ["no key probe.every"],
    "+recipe.foo=1": ["recipe.foo", "this model and data set do not use it"],
    "+checkpoint.x=1": ["no key checkpoint.x"],
    "attention.dim=3": ["no key attention.dim"],
    "+attention.dim=3": ["attention.dim cannot be set"],
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
    "~attention": ["needs the axis attention"],
    "++variants={attention:neutreno}": ["variants is declared in the model's file"],
    "++labels={task.lr:lr}": ["labels is declared in the model's file"],
    "family=x": ["family is declared in the model's file"],
    "++recipe={foo:0.3}": ["recipe is a group of files"],
    "++trainer.callbacks=[]": ["trainer.callbacks cannot be set"],
    "++trainer.fast_dev_run=true": ["trainer.fast_dev_run cannot be set"],
    "++trainer.min_epochs=x": ["trainer.min_epochs=x"],
    "trainer._target_=os.system": ["trainer._target_=os.system is no lightning.Trainer"],
    "++probe._target_=builtins.dict": ["probe._target_ cannot be set"],
    "trainer.plugins=[1]": ["trainer.plugins"],
    "trainer.plugins=[{_target_:os.system,command:ls}]": ["os.system"],
    "trainer.devices=abc": ["trainer.devices=abc"],
    "trainer.strategy={a:b}": ["trainer.strategy"],
    "trainer.strategy=dpp": ["trainer.strategy=dpp", "did you mean ddp"],
    "attention._partial_=false": ["attention._partial_ has to be true"],
    "attention.lam=${recipe.nope}": ["attention.lam", "recipe.nope"],
    "data=null": ["no option data=null", "digits"],
    "experiment=null": ["no option experiment=null"],
    "model=3": ["no option model=3"],
    "name=": ["name="],
    "data.augment=1": ["no key data.augment"],
    "probe.metrics=[cosin]": ["probe.metrics"],
    "seed=-1": ["seed=-1"],
    "seed=1.5": ["seed=1.5"],
    "resume=maybe": ["resume=maybe", "boolean"],
    "model.depth=100000000000": ["model.depth"],
    "data.batch_size=nan": ["data.batch_size=nan"],
    "trainer.precision=16-mix": ["trainer.precision=16-mix"],
    "name=0": ["name=0"],
    "name=' '": ["name=' ' is blank"],
    "name='a\tb'": ["name=a b holds a character that cannot be printed"],
    "output_dir=": ["output_dir='' is blank"],
    "output_dir=' '": ["output_dir=' ' is blank"],
    "task.ema_decay=1": ["task.ema_decay=1 should be less than 1"],
    "trainer.gradient_clip_val=-1": ["trainer.gradient_clip_val=-1"],
    "trainer.gradient_clip_val=nan": ["trainer.gradient_clip_val=nan"],
    "trainer.check_val_every_n_epoch=0": ["trainer.check_val_every_n_epoch=0"],
    "+trainer.val_check_interval=0": ["trainer.val_check_interval=0 should be a number of batches"],
    "+trainer.val_check_interval=-1": ["trainer.val_check_interval=-1 should be a number of batches"],
    "trainer.limit_train_batches=0": ["trainer.limit_train_batches=0 should be a number of batches"],
    "trainer.limit_val_batches=0": ["trainer.limit_val_batches=0 should be a number of batches"],
    "trainer.limit_val_batches=0.0": ["trainer.limit_val_batches=0.0 should be a number of batches"],
    "+trainer.min_epochs=-3": ["trainer.min_epochs=-3"],
    "+trainer.max_time=1": ["trainer.max_time cannot be set"],
    "+paper.x=1": ["paper.x", "cannot be set on the command line"],
    "attention=null": ["no option attention=null", "softmax"],
    "model=null": ["no option model=null", "deit"],
    "model.drop_path_rate=1.5": ["model.drop_path_rate=1.5"],
    "+model.drop_rate=1": ["model.drop_rate=1"],
}


@pytest.mark.parametrize("word", WORDS)
def test_a_word_that_is_wrong_gets_one_line_that_helps(word, tmp_path):
    assert_one_line_error(run_forked("train.py", word, cwd=tmp_path), *WORDS[word])
    assert not (tmp_path / "outputs").exists()


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


@pytest.mark.parametrize("words", [["launcher.max_parallel=1,2"], ["output_dir=a,b"], ["seed=range(0,0)"]])
def test_a_sweep_that_cannot_be_what_it_says_is_refused(words, tmp_path):
    done = run_forked("train.py", "-m", *words, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
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
