"""What goes wrong is said once, clearly, and costs nothing that was saved."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess

import pytest
import torch
from vllm_eagle_plugin.training.recipe import load_recipe, shipped_recipes

from vllm_eagle_plugin.errors import HeadError, UsageError

from ..known_answer import build_target
from .conftest import SMALL, World
from .language import write_language
from .test_resume import command_line, last_checkpoint


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("eagle9", [], "there is no recipe eagle9"),
        ("missing.toml", [], "missing.toml cannot be read"),
        ("eagle1", ["epoch=3"], "unknown setting epoch"),
        ("eagle1", ["optimiser.rate=3"], "unknown setting optimiser.rate"),
        ("eagle1", ["epochs=three"], "epochs is 'three'"),
        ("eagle1", ["epochs=0"], "A whole number above 0"),
        ("eagle1", ["optimiser.learning_rate=-1"], "learning_rate is -1"),
        ("eagle1", ["optimiser.learning_rate=nan"], "learning_rate is nan"),
        ("eagle1", ["optimiser=3"], "optimiser is 3"),
        ("eagle1", ["epochs"], "--set epochs is no setting"),
        ("eagle1", ["family=eagle2"], "family is eagle2"),
        ("eagle1", ["precision=fp8"], "precision is fp8"),
        ("eagle1", ["head.blocks=2"], "sets head.blocks"),
        ("eagle3", ["loss.mse=1"], "match the target's features"),
        ("eagle3", ["loss.cross_entropy=0"], "every weight"),
        ("eagle3", ["head.layer_ids=2"], "head.layer_ids is 2"),
        ("eagle1", ["batch.tokens=512", "batch.length=512"], "batch.tokens is 512"),
        ("eagle1", ["optimiser.beta2=1"], "beta1 or beta2"),
    ],
)
def test_bad_recipes(name, changes, said):
    with pytest.raises(UsageError, match=said):
        load_recipe(name, changes)


def test_a_recipe_of_ones_own(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('family = "feature"\n[head]\nblocks = 1\n')
    recipe = load_recipe(str(file), ["epochs=2"])
    assert (recipe.name, recipe.head.blocks, recipe.epochs) == ("mine", 1, 2)
    file.write_text("family = feature")
    with pytest.raises(UsageError, match="no TOML"):
        load_recipe(str(file))
    file.write_text("epochs = 1")
    with pytest.raises(UsageError, match="names no family"):
        load_recipe(str(file))
    assert all(load_recipe(name).name == name for name in shipped_recipes())


@pytest.mark.parametrize(
    ("recipe", "changes", "said"),
    [
        ("eagle3", ["head.draft_vocab_size=25", "head.layer_ids=[1,3,5]"], "draft_vocab_size is 25"),
        ("eagle3", ["head.draft_vocab_size=16", "head.layer_ids=[1,3]"], "Three layers"),
        ("eagle3", ["head.draft_vocab_size=16", "head.layer_ids=[1,3,6]"], "a target that has 6"),
        ("projection", ["head.draft_vocab_size=0", "head.width=64"], "drafts 1 token"),
        ("eagle1", ["batch.tokens=100000"], "less than one step"),
    ],
)
def test_recipes_that_do_not_fit(recipe, changes, said, world, tmp_path):
    with pytest.raises(HeadError, match=said):
        world.train(recipe, tmp_path / "head", changes)


@pytest.fixture(scope="module")
def begun(world, tmp_path_factory):
    """A run with two checkpoints, to be copied and damaged."""
    output = tmp_path_factory.mktemp("begun") / "head"
    world.train("feature", output, ["epochs=1"], checkpoint_every=3)
    return output


def files(folder):
    return {f.relative_to(folder): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_a_folder_of_another_run_is_left_alone(world, begun):
    before = files(begun)
    with pytest.raises(UsageError, match=r"holds a run with recipe.optimiser.learning_rate 0.001, now it is 0.002"):
        world.train("feature", begun, ["epochs=1", "optimiser.learning_rate=2e-3"])
    assert files(begun) == before


def test_runs_of_before_a_setting_existed_go_on(world, begun, tmp_path):
    """An unknown setting that is off is no difference; one that is on is."""
    output = shutil.copytree(begun, tmp_path / "head")
    shutil.rmtree(last_checkpoint(output))
    file = output / "run" / "run.json"
    stored = json.loads(file.read_text())
    del stored["recipe"]["loss"]["logit_mse"]
    file.write_text(json.dumps(stored))
    assert world.train("feature", output, ["epochs=1"], checkpoint_every=3).finished
    with pytest.raises(UsageError, match=r"recipe.loss.logit_mse null, now it is 1.0"):
        world.train("feature", output, ["epochs=1", "loss.logit_mse=1"], checkpoint_every=3)


def test_a_folder_of_something_else_is_left_alone(world, tmp_path):
    (tmp_path / "thesis.txt").write_text("five years of work")
    with pytest.raises(UsageError, match="is not empty"):
        world.train("feature", tmp_path, ["epochs=1"])
    assert files(tmp_path).keys() == {(tmp_path / "thesis.txt").relative_to(tmp_path)}


def test_changed_targets_are_noticed(world, begun, tmp_path):
    """One weight of one layer, of the same shape and name: the data are no longer this target's."""
    other = build_target(tmp_path / "target", seed=1)
    with pytest.raises(HeadError, match="whose weights are not those of"):
        World(other, world.data).train("feature", tmp_path / "head", ["epochs=1"])
    assert not (tmp_path / "head").exists()
    before = files(begun)
    with pytest.raises(UsageError, match="holds a run with target"):
        World(other, write_language(other, tmp_path / "data")).train("feature", begun, ["epochs=1"], checkpoint_every=3)
    assert files(begun) == before


def test_changed_data_are_noticed(world, begun, tmp_path):
    data = write_language(world.target, tmp_path / "data", seed=1)
    with pytest.raises(UsageError, match=r"holds a run with data.digest"):
        World(world.target, data).train("feature", begun, ["epochs=1"], checkpoint_every=3)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "no conversation"),
        ('{"prompt": [1], "answer": [2]}', "'temperature'"),
        ('{"prompt": [], "answer": [2], "temperature": 0}', "lists of token ids"),
        ('{"prompt": [1], "answer": "2", "temperature": 0}', "lists of token ids"),
        ('{"prompt": [1], "answer": [24], "temperature": 0}', "have token 24"),
    ],
)
def test_damaged_data(line, said, world, tmp_path):
    data = shutil.copytree(world.data, tmp_path / "data")
    with (data / "shard0001.jsonl").open("a") as shard:
        shard.write(line + "\n")
    with pytest.raises(HeadError, match=said):
        World(world.target, data).train("feature", tmp_path / "head", ["epochs=1"])
    assert not (tmp_path / "head").exists()


def test_data_that_are_not_there(world, tmp_path):
    with pytest.raises(HeadError, match="holds no shards"):
        World(world.target, tmp_path).train("feature", tmp_path / "head", ["epochs=1"])


def test_data_that_are_all_held_out(world, tmp_path):
    data = write_language(world.target, tmp_path / "data", shards=1, rows=8)
    with pytest.raises(HeadError, match=r"8 conversations, all of them held out.*--set held_out=N"):
        World(world.target, data).train("feature", tmp_path / "head", ["epochs=1"])


def test_a_loss_that_is_no_number(world, tmp_path):
    """Found before the weights are touched; what was saved stays good and can be gone on from."""
    changes = ["epochs=3", "optimiser.learning_rate=1e30", "optimiser.warmup=0.1"]
    with pytest.raises(HeadError, match=r"the loss of step \d+ is .*--set optimiser.learning_rate") as caught:
        world.train("eagle1", tmp_path / "head", changes, checkpoint_every=1)
    kept = int(last_checkpoint(tmp_path / "head").name.removeprefix("step-"))
    assert f"the last checkpoint is of step {kept}" in str(caught.value)
    assert not (tmp_path / "head" / "model.safetensors").exists()


def test_a_full_disk(world, tmp_path):
    """Files may not grow: the first checkpoint fails. With room again, the run ends as if nothing had been."""
    output = tmp_path / "head"
    command = command_line("feature", world, output, ["epochs=1"], "--checkpoint-every", "3", "-k", "4")
    limit = 200 << 10
    full = subprocess.run(
        command,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert full.returncode == 1, full.stderr
    (message,) = [line for line in full.stderr.splitlines() if line.startswith("error:")]
    assert "cannot be written" in message
    assert "run the same command again" in message
    assert "Traceback" not in full.stderr
    assert not list((output / "run").glob("step-*"))
    done = world.train("feature", output, ["epochs=1"], checkpoint_every=3)
    assert done.finished
    whole = world.train("feature", tmp_path / "whole", ["epochs=1"], checkpoint_every=3)
    assert torch.load(output / "head.pt").keys() == torch.load(tmp_path / "whole" / "head.pt").keys()
    assert whole.progress.best == done.progress.best


def test_a_full_disk_later(world, begun, tmp_path):
    """The log has no room: the last checkpoint is named and whole."""
    output = shutil.copytree(begun, tmp_path / "head")
    shutil.rmtree(last_checkpoint(output))
    (output / "run" / "log.jsonl").unlink()
    (output / "run" / ".log.jsonl.partial").symlink_to("/dev/full")
    before = files(last_checkpoint(output))
    with pytest.MonkeyPatch.context() as patched:
        from vllm_eagle_plugin.training.run_folder import RunFolder

        patched.setattr(RunFolder, "rewind_log", lambda self, step: self.log_file.symlink_to("/dev/full"))
        with pytest.raises(HeadError, match=r"No space left on device .* checkpoint of step 6 is whole"):
            world.train("feature", output, ["epochs=1"], checkpoint_every=3)
    assert files(last_checkpoint(output)) == before
    (output / "run" / "log.jsonl").unlink()
    assert world.train("feature", output, ["epochs=1"], checkpoint_every=3).finished


def test_a_damaged_checkpoint(world, begun, tmp_path):
    output = shutil.copytree(begun, tmp_path / "head")
    weights = last_checkpoint(output) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(HeadError, match="Remove it to go on from the one before"):
        world.train("feature", output, ["epochs=1"], checkpoint_every=3)
    shutil.rmtree(last_checkpoint(output))
    assert world.train("feature", output, ["epochs=1"], checkpoint_every=3).finished
    assert (output / "head.pt").read_bytes() == (begun / "head.pt").read_bytes()


def test_processes_must_share_a_step(world, tmp_path):
    """One micro-batch cannot be shared by two processes."""
    command = command_line("feature", world, tmp_path / "head", ["batch.micro_batches=1"])
    from .test_processes import launch

    running = launch(command, 29613)
    out, _ = running.communicate(timeout=300)
    assert running.returncode != 0
    assert "batch.micro_batches is 1 for 2 processes" in out
    assert "--set batch.micro_batches=2 --set batch.tokens=512" in " ".join(out.split())


def test_the_log_is_json_lines(begun):
    rows = [json.loads(line) for line in (begun / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["event"] for row in rows] == ["start", *["step"] * 9, "held_out"]
    assert all({"loss", "argmax_agreement", "learning_rate", "answer_tokens"} <= row.keys() for row in rows[1:-1])
    assert SMALL  # the settings these counts follow from
