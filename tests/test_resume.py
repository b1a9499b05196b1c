"""Runs that are killed, told to stop, or out of disk: what is on the disk afterwards, and that
nothing of the run is lost.
"""

import csv
import itertools
import multiprocessing
import os
import random
import resource
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from affine import Affine
from fastai.callback.core import Callback
from fastai.torch_core import set_seed

from eo_brew.train.log import StepLog
from eo_brew.runs.checkpoints import CheckpointCallback, list_checkpoints, newest_checkpoint
from eo_brew.data.dataloaders import eo_dataloaders
from eo_brew.methods.deo import deo_learner
from eo_brew.runs.dry_run import dry_run
from eo_brew.runs.faults import EXIT_STOPPED, NotFiniteError, StopOnNaN, StopOnSignal
from eo_brew.scenes.open import open_scene, sample_scene, write_raster
from eo_brew.scenes.scene import close_handles
from eo_brew.runs.states import CheckpointError, read_checkpoint, write_checkpoint
from eo_brew.views.multicrop import MultiCrop

BANDS = ["B02", "B03", "B04", "B08", "B11"]
TINY = dict(img_size=16, patch_size=8, embed_dim=12, depth=2, num_heads=1, drop_path=0.2)
PROCESSES = multiprocessing.get_context(
    "fork"
)  # have everything imported already; they use one thread


SCENE = {}  # read once for all runs


def learner(*cbs, n=28, scenes=None, seed=0, generator=None, **kwargs):
    """DEO's self-distillation on the shipped scene, with all that is random in it: windows, order,
    crops, colours, stochastic depth.
    """
    torch.set_num_threads(1)
    set_seed(0)
    dls = eo_dataloaders(
        scenes or sample_scene(),
        sensor="sentinel2_l1c",
        bands=BANDS,
        size=32,
        bs=4,
        n=n,
        seed=seed,
        device="cpu",
        **kwargs,
    )
    if scenes is None:
        dls.train_ds.cache = dls.valid_ds.cache = SCENE
    views = MultiCrop(
        n_local=1,
        global_size=16,
        local_size=8,
        generator=generator and torch.Generator().manual_seed(generator),
    )
    learn = deo_learner(
        dls,
        "vit_tiny_patch16_224",
        None,
        views=views,
        hidden=16,
        head_dim=8,
        lr=1e-3,
        cbs=list(cbs),
        **TINY,
    )
    return learn.remove_cb(learn.progress) if hasattr(learn, "progress") else learn


def train(folder, epochs, steps=1, resume=True, cbs=(), **kwargs):
    folder = Path(folder)
    learn = learner(
        CheckpointCallback(folder, steps=steps),
        StepLog(folder / "log.csv", every=3),
        *cbs,
        **kwargs,
    )
    if resume and list_checkpoints(folder):
        torch.rand(5)
        learn.resume(folder)
    with learn.no_logging():
        learn.fit(epochs)
    return learn


class Tell(Callback):
    "Say which step is done."

    order = 80

    def __init__(self, pipe):
        self.pipe = pipe

    def before_train(self):
        self.pipe.send(self.train_iter)

    def after_batch(self):
        if self.training:
            self.pipe.send(self.train_iter)


def child(folder, epochs, pipe, **kwargs):
    train(folder, epochs, cbs=[Tell(pipe)], **kwargs)
    pipe.send("done")


def started(f, *args, **kwargs):
    "A process, and the end of a pipe that hears from it."
    hear, tell = PROCESSES.Pipe(duplex=False)
    p = PROCESSES.Process(target=f, args=(*args, tell), kwargs=kwargs)
    p.start()
    tell.close()
    return p, hear


def result(learn, folder):
    "Everything that two equal runs have in common; times are not among it."
    with open(Path(folder) / "log.csv", newline="") as f:
        rows = [
            {k: v for k, v in r.items() if k not in ("images_per_s", "wait")}
            for r in csv.DictReader(f)
        ]
    values = [[float(x) for x in row] for row in learn.recorder.values]
    return dict(
        model={k: v.clone() for k, v in learn.model.state_dict().items()},
        losses=[float(x) for x in learn.recorder.losses],
        values=values,
        log=rows,
        lrs=learn.recorder.hps["lr"],
        opt=[
            s[k]
            for s in learn.opt.state_dict()["state"].values()
            for k in ("exp_avg", "exp_avg_sq")
        ],
    )


def check_same(a, b):
    "Bit for bit."
    for k, v in a["model"].items():
        assert torch.equal(v, b["model"][k]), k
    assert all(torch.equal(x, y) for x, y in zip(a["opt"], b["opt"]))
    for k in ("losses", "values", "lrs", "log"):
        assert a[k] == b[k], k


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "The run that nobody stops: 18 steps in 3 epochs."
    folder = tmp_path_factory.mktemp("whole")
    res = result(train(folder, 3), folder)
    assert len(res["losses"]) == 18 and len(res["values"]) == 3
    return res


def kill_and_resume(folder, epochs, kills, most, seed, **kwargs):
    """Kill the run `kills` times at random moments, each time going on; how many steps each life
    made, and the finished run.
    """
    rng, lives = random.Random(seed), []
    for _ in range(kills):
        p, hear = started(child, folder, epochs, **kwargs)
        first = hear.recv()
        for _ in range(rng.randint(0, most)):
            hear.recv()
        time.sleep(rng.random() * 0.05)
        p.kill()
        p.join()
        assert p.exitcode == -signal.SIGKILL, (
            "the run was over before it could be killed: give it more steps"
        )
        done = [int(c.stem.split("-")[1]) for c in list_checkpoints(folder)]
        lives.append((first, max(done, default=0)))
    return lives, train(folder, epochs, **kwargs)


def test_killed_at_random_moments(whole, tmp_path):
    lives, learn = kill_and_resume(tmp_path, 3, kills=4, most=3, seed=1)
    print(lives)
    assert lives[-1][1] > 0 and all(
        start == (lives[i - 1][1] if i else 0) for i, (start, _) in enumerate(lives)
    )  # each goes on where the one before was
    check_same(whole, result(learn, tmp_path))
    assert not list(tmp_path.glob(".*"))  # nothing half written stays


@pytest.mark.slow
def test_fifty_kills(tmp_path):
    "The claim of the documentation, at full length: 182 steps in 14 epochs, killed 50 times."
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = result(train(tmp_path / "a", 14, n=60), tmp_path / "a")
    lives, learn = kill_and_resume(tmp_path / "b", 14, kills=50, most=3, seed=2, n=60)
    print(lives)
    assert lives[-1][1] > 20
    check_same(whole, result(learn, tmp_path / "b"))


class Stop(Callback):
    order = 95

    def __init__(self, step):
        self.step = step

    def after_batch(self):
        if self.training and self.train_iter == self.step:
            raise KeyboardInterrupt


def interrupted(folder, step, epochs=3, **kwargs):
    with pytest.raises(KeyboardInterrupt):
        train(folder, epochs, cbs=[Stop(step)], **kwargs)


@pytest.mark.parametrize("step", [6, 7, 11])
def test_every_place_in_an_epoch(whole, tmp_path, step):
    "At the end of an epoch, after the first step of one, before its last."
    interrupted(tmp_path, step)
    check_same(whole, result(train(tmp_path, 3), tmp_path))


@pytest.mark.parametrize("step", [6, 7])
@pytest.mark.parametrize("option", [dict(band_dropout=0.4), dict(generator=5)])
def test_what_the_loader_and_a_generator_of_the_views_draw(tmp_path, step, option):
    whole = result(train(tmp_path / "a", 3, **option), tmp_path / "a")
    interrupted(tmp_path / "b", step, **option)
    check_same(whole, result(train(tmp_path / "b", 3, **option), tmp_path / "b"))


def test_a_dry_run_puts_a_generator_of_the_views_back():
    learn = learner(generator=5)
    before = learn.views.generator.get_state()
    dry_run(learn, steps=1, warmup=0, probe=False)
    assert torch.equal(learn.views.generator.get_state(), before)


def test_other_data_are_refused(tmp_path):
    """Another seed, or other windows of the same number, would train on what the run has kept for
    validation; an older checkpoint, which does not say, goes on.
    """
    split = lambda first: (
        lambda windows, scenes: (
            windows.take(slice(first, first + 24)),
            windows.take(slice(24 - first, 28 - first)),
        )
    )
    interrupted(tmp_path, 3, epochs=1, split=split(0))
    with pytest.raises(CheckpointError, match="the loader has seed=1, the run had 0"):
        train(tmp_path, 1, seed=1, split=split(0))
    with pytest.raises(CheckpointError, match="training windows are not those of the run"):
        train(tmp_path, 1, split=split(4))
    state = newest_checkpoint(tmp_path)
    for k in "seed", "windows":
        del state["where"][k]
    write_checkpoint(state, tmp_path / "step-00000004.ckpt")
    train(tmp_path, 1, split=split(4))


def test_a_new_run_does_not_go_into_the_folder_of_an_old_one(tmp_path):
    interrupted(tmp_path, 5)
    before = list_checkpoints(tmp_path)
    with pytest.raises(CheckpointError, match="checkpoints of another run"):
        train(tmp_path, 3, resume=False)
    assert list_checkpoints(tmp_path) == before


def test_two_callbacks_of_one_class(tmp_path):
    class Remember(Callback):
        def __init__(self, what=None):
            self.what = what

        def state_dict(self):
            return dict(what=self.what)

        def load_state_dict(self, state):
            self.what = state["what"]

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, 1, cbs=[Remember("a"), Remember("b"), Stop(2)])
    later = [Remember(), Remember()]
    train(tmp_path, 1, cbs=later)
    assert [c.what for c in later] == ["a", "b"] and {"Remember", "Remember 2"} < set(
        newest_checkpoint(tmp_path)["callbacks"]
    )


def test_another_optimizer(tmp_path):
    "fastai's own AdamW keeps its state in another form."
    from fastai.optimizer import Adam

    def go(folder, step=None):
        learn = learner(CheckpointCallback(folder, steps=1), *([Stop(step)] if step else []))
        learn.opt_func = Adam
        if list_checkpoints(folder):
            learn.resume(folder)
        with learn.no_logging():
            learn.fit(2)
        return learn

    whole = go(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "b", 8)
    for a, b in zip(
        whole.model.state_dict().values(), go(tmp_path / "b").model.state_dict().values()
    ):
        assert torch.equal(a, b)


# -- damage ----------------------------------------------------------------------------------------


def test_a_newest_checkpoint_cut_short(whole, tmp_path, capsys):
    "Whatever is left of it, the one before is taken, and said."
    interrupted(tmp_path, 12)
    newest, whole_file = list_checkpoints(tmp_path)[-1], list_checkpoints(tmp_path)[-1].read_bytes()
    for size in 0, 7, 1000, len(whole_file) - 1:
        newest.write_bytes(whole_file[:size])
        assert newest_checkpoint(tmp_path)["where"]["train_iter"] == 11
        assert f"{newest.name} cannot be read" in capsys.readouterr().out
    check_same(whole, result(train(tmp_path, 3), tmp_path))


def test_all_checkpoints_damaged(tmp_path):
    (tmp_path / "step-00000001.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        newest_checkpoint(tmp_path)


def killed_while_writing(folder, epochs, name, pipe):
    "In `os.replace`, or in the middle of safetensors' own file, which it writes beside the one that it was told."
    from eo_brew.runs import states

    where = os if name == "replace" else states
    f = getattr(where, name)

    def die(a, b, **kwargs):
        if "00000005.ckpt" in str(b):
            if name == "save_file":
                Path(b).with_name(".tmpAbCdEf").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        f(a, b, **kwargs)

    setattr(where, name, die)
    child(folder, epochs, pipe)


@pytest.mark.parametrize("name", ["replace", "save_file"])
def test_killed_while_writing(whole, tmp_path, name):
    p, hear = started(killed_while_writing, tmp_path, 3, name)
    p.join()
    assert p.exitcode == -signal.SIGKILL and len(list(tmp_path.glob(".step-00000005.ckpt.*"))) == 1
    assert newest_checkpoint(tmp_path)["where"]["train_iter"] == 4
    check_same(whole, result(train(tmp_path, 3), tmp_path))
    assert not list(tmp_path.glob(".*"))


@pytest.fixture
def small_disk():
    "Files may not grow beyond a size; what the operating system says then is what a full disk says."
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, old)
    signal.signal(signal.SIGXFSZ, handler)


def test_disk_full_while_writing(whole, tmp_path, small_disk):
    interrupted(tmp_path, 6)
    good = {c.name: c.read_bytes() for c in list_checkpoints(tmp_path)}
    size = len(good["step-00000006.ckpt"])
    small_disk(size // 2)
    with pytest.raises(
        CheckpointError,
        match=r"step-00000007.ckpt' could not be written: .* MB are free .*make room and resume",
    ):
        train(tmp_path, 3)
    small_disk(resource.RLIM_INFINITY)
    assert {c.name: c.read_bytes() for c in list_checkpoints(tmp_path)} == good and not list(
        tmp_path.glob(".step*")
    )
    check_same(whole, result(train(tmp_path, 3), tmp_path))


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file"):
        write_checkpoint({"a": torch.ones(2)}, tmp_path / "file" / "x.ckpt")


def tiles(folder):
    "Six files of noise."
    scene = open_scene(sample_scene(), bands=BANDS)
    for i in range(6):
        x = np.random.default_rng(i).integers(1, 3000, (len(BANDS), 64, 64)).astype("uint16")
        write_raster(
            folder / f"tile{i}.tif",
            x,
            scene,
            BANDS,
            scene.transform @ Affine.translation(64 * i, 0),
        )
    return dict(scenes=folder, in_memory=False)


class Damage(Callback):
    "Cut a file short while an epoch is under way."

    def __init__(self, file):
        self.file = file
        self.whole = file.read_bytes()

    def after_batch(self):
        if self.training and self.train_iter == 6:
            self.file.write_bytes(self.whole[:3000])
            close_handles()


def test_a_tile_damaged_in_the_middle_of_an_epoch(tmp_path):
    """The run stops and names the file; with the file repaired it goes on as if nothing had been.
    Or it goes on without the windows, and says so.
    """
    for name in "tiles", "a", "b":
        (tmp_path / name).mkdir()
    data = tiles(tmp_path / "tiles")
    whole, bad = (
        result(train(tmp_path / "a", 3, **data), tmp_path / "a"),
        Damage(tmp_path / "tiles" / "tile1.tif"),
    )
    with pytest.raises(ValueError, match="tile1.tif"):
        train(tmp_path / "b", 3, cbs=[bad], **data)
    assert newest_checkpoint(tmp_path / "b")["where"]["train_iter"] >= 6
    bad.file.write_bytes(bad.whole)
    close_handles()
    check_same(whole, result(train(tmp_path / "b", 3, **data), tmp_path / "b"))
    with pytest.warns(UserWarning, match="could not be read and were skipped.*tile1.tif"):
        learn = train(tmp_path / "c", 3, cbs=[bad], on_error="skip", max_lost=0.5, **data)
    assert len(learn.recorder.losses) > 8 and {
        Path(f).name for f, _ in learn.dls.train_ds.lost_windows.report()
    } == {"tile1.tif"}


def test_clock_set_back(tmp_path, monkeypatch):
    """Minutes between checkpoints are counted by a clock that nobody sets: here 20 s pass from each
    question to the next.
    """
    ticks = itertools.count(0, 20)
    monkeypatch.setattr(
        "eo_brew.runs.checkpoints.time", SimpleNamespace(monotonic=lambda: next(ticks))
    )  # and no other clock is asked
    learn = learner(CheckpointCallback(tmp_path, minutes=1, keep=99))
    with learn.no_logging():
        learn.fit(3)
    assert [int(c.stem[5:]) for c in list_checkpoints(tmp_path)] == [4, 8, 12, 16, 18]


# -- told to stop ----------------------------------------------------------------------------------


def obedient(folder, epochs, workers, pipe):
    train(folder, epochs, steps=1000, cbs=[Tell(pipe), StopOnSignal()], num_workers=workers)


@pytest.mark.parametrize("workers", [0, 1])
def test_sigterm(whole, tmp_path, workers):
    p, hear = started(obedient, tmp_path, 3, workers)
    while hear.recv() < 8:
        pass  # in the second epoch
    p.terminate()
    p.join()
    assert p.exitcode == EXIT_STOPPED == 75
    steps = [read_checkpoint(c)["where"]["train_iter"] for c in list_checkpoints(tmp_path)]
    assert len(steps) == 1 and 8 <= steps[0] < 18
    check_same(whole, result(train(tmp_path, 3), tmp_path))


class TermWhile(Callback):
    "Send a signal where a callback of this order is called."

    def __init__(self, event, step, order, number=signal.SIGTERM):
        self.event = event
        self.step = step
        self.order = order
        self.number = number

    def __call__(self, event):
        if event == self.event and self.train_iter == self.step:
            self.step = -1
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("event", ["before_batch", "after_validate"])
def test_sigterm_at_any_place(whole, tmp_path, event):
    "Before the views are cut, between epochs."
    with pytest.raises(SystemExit) as e:
        train(tmp_path, 3, steps=1000, cbs=[StopOnSignal(), TermWhile(event, 6, -20)])
    assert e.value.code == EXIT_STOPPED and len(list_checkpoints(tmp_path)) == 1
    check_same(whole, result(train(tmp_path, 3), tmp_path))


def test_ctrl_c_writes_a_checkpoint_of_a_pretraining(tmp_path, capsys):
    "It was lost up to the last five minutes."
    from eo_brew.app.pretrain import pretrain

    args = dict(
        out=tmp_path / "run",
        bands=["B04", "B03", "B02"],
        arch="vit_tiny_patch16_224",
        vfm="none",
        epochs=2,
        size=128,
        bs=8,
        img_size=32,
        patch_size=8,
        embed_dim=24,
        depth=2,
        num_heads=1,
        hidden=16,
        head_dim=8,
        views=MultiCrop(n_local=0, global_size=32, photometric=False),
    )
    with pytest.raises(SystemExit) as e:
        pretrain(sample_scene(), cbs=[TermWhile("before_batch", 3, -20, signal.SIGINT)], **args)
    assert (
        e.value.code == EXIT_STOPPED
        and len(list_checkpoints(tmp_path / "run" / "checkpoints")) == 1
        and "SIGINT: checkpoint of step" in capsys.readouterr().out
    )
    assert pretrain(sample_scene(), resume=True, **args).exists()


def test_sigterm_in_validation(whole, tmp_path):
    class InValidation(Callback):
        def after_pred(self):
            if not self.training and self.epoch == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as e:
        train(tmp_path, 3, steps=1000, cbs=[StopOnSignal(), InValidation()])
    assert e.value.code == EXIT_STOPPED and [c.stem for c in list_checkpoints(tmp_path)] == [
        "step-00000012"
    ]
    check_same(whole, result(train(tmp_path, 3), tmp_path))


class Repeat(Callback):
    "Send the signal several times in a step."

    def __init__(self, times=2, pause=0.0):
        self.times = times
        self.pause = pause

    def before_step(self):
        if self.train_iter == 5:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(self.pause)


def test_the_same_signal_twice_in_a_row_is_one(whole, tmp_path):
    "Queues repeat themselves: the checkpoint is written all the same, and nothing stays of the handler."
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as e:
        train(tmp_path, 3, steps=1000, cbs=[StopOnSignal(), Repeat()])
    assert e.value.code == EXIT_STOPPED and [c.stem for c in list_checkpoints(tmp_path)] == [
        "step-00000006"
    ]
    assert signal.getsignal(signal.SIGTERM) == before
    check_same(whole, result(train(tmp_path, 3), tmp_path))


def test_a_signal_that_comes_again_later_ends_at_once(tmp_path):
    with pytest.raises(SystemExit) as e:
        train(tmp_path, 3, steps=1000, cbs=[StopOnSignal(patience=0.01), Repeat(pause=0.05)])
    assert e.value.code == EXIT_STOPPED and not list_checkpoints(tmp_path)


def test_a_signal_while_the_checkpoint_is_written(whole, tmp_path, monkeypatch):
    "Also the last one: the second signal comes in the middle of the checkpoint that the first one asked for."
    from eo_brew.runs import checkpoints

    write = checkpoints.write_checkpoint

    def disturbed(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        write(*args)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(checkpoints, "write_checkpoint", disturbed)
    with pytest.raises(SystemExit) as e:
        train(tmp_path, 3, steps=7, cbs=[StopOnSignal()])
    monkeypatch.undo()
    assert e.value.code == EXIT_STOPPED and [c.stem for c in list_checkpoints(tmp_path)] == [
        "step-00000007"
    ]
    check_same(whole, result(train(tmp_path, 3), tmp_path))


def in_a_group(folder, epochs, workers, signals, pipe):
    os.setpgid(0, 0)
    cbs = [Tell(pipe), StopOnSignal(("SIGTERM", "SIGINT"))]
    train(folder, epochs, steps=1000, cbs=cbs, num_workers=workers)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers, times", [(0, 1), (2, 1), (2, 3)])
def test_the_whole_group_is_told(whole, tmp_path, number, workers, times):
    "What schedulers, service managers and terminals do: loader workers get the signal too, and died of it."
    p, hear = started(in_a_group, tmp_path, 3, workers, None)
    while hear.recv() < 8:
        pass
    for _ in range(times):
        os.killpg(p.pid, number)
    p.join(60)
    assert p.exitcode == EXIT_STOPPED
    assert len(list_checkpoints(tmp_path)) == 1 and not list(tmp_path.glob(".*"))
    check_same(whole, result(train(tmp_path, 3), tmp_path))


def waits_for_its_workers(folder, epochs, number, pipe):
    "The signal comes while the loop waits for a batch."
    from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter as Loader

    get, calls = Loader._get_data, itertools.count()
    stop = StopOnSignal(("SIGTERM", "SIGINT"))

    def told(self):
        if stop.waiting and next(calls) == 3:
            os.kill(os.getpid(), number)
        return get(self)

    Loader._get_data = told
    train(folder, epochs, steps=1000, cbs=[stop], num_workers=2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_while_it_waits_for_its_workers(whole, tmp_path, number):
    "Workers that hear no signal outlived the loop, and the process waited for them for ever."
    p, hear = started(waits_for_its_workers, tmp_path, 3, number)
    p.join(60)
    alive = p.is_alive()
    p.kill()
    assert not alive and p.exitcode == EXIT_STOPPED and len(list_checkpoints(tmp_path)) == 1
    check_same(whole, result(train(tmp_path, 3), tmp_path))


class At(Callback):
    "Do something at a moment of the second epoch."

    def __init__(self, moment, do):
        self.moment = moment
        self.do = do

    def before_train(self):
        if self.epoch == 1 and self.moment == "start of an epoch":
            self.do()

    def after_pred(self):
        if self.epoch == 1 and not self.training and self.moment == "validation":
            self.do()

    def before_backward(self):
        if self.epoch == 1 and self.moment == "step":
            self.do()
            self.moment = None


def hits_its_group(folder, epochs, moment, number, pipe):
    from eo_brew.runs import checkpoints

    os.setpgid(0, 0)
    write = checkpoints.write_checkpoint

    def hit():
        os.killpg(os.getpid(), number)

    def disturbed(*args):
        hit()
        write(*args)
        hit()

    if moment == "checkpoint":
        checkpoints.write_checkpoint = disturbed
    cbs = [StopOnSignal(("SIGTERM", "SIGINT")), At(moment, hit)]
    train(folder, epochs, steps=7, cbs=cbs, num_workers=2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", ["checkpoint", "validation", "start of an epoch", "step"])
def test_the_whole_group_is_told_at_any_moment(whole, tmp_path, moment, number):
    "With two loader workers; during a checkpoint before and after it is written."
    p, hear = started(hits_its_group, tmp_path, 3, moment, number)
    p.join(60)
    assert p.exitcode == EXIT_STOPPED
    assert list_checkpoints(tmp_path) and not list(tmp_path.glob(".*"))
    check_same(whole, result(train(tmp_path, 3), tmp_path))


def loses_a_worker(folder, epochs, pipe):
    class Kill(Callback):
        def after_batch(self):
            if self.training and self.train_iter == 8:
                for c in multiprocessing.active_children():
                    os.kill(c.pid, signal.SIGKILL)

    try:
        train(folder, epochs, cbs=[Kill()], num_workers=1)
    except (RuntimeError, OSError) as e:
        pipe.send(str(e))


def test_a_worker_killed(whole, tmp_path):
    """The loader says so (or that the connection to it is lost), and the run goes on from the last
    checkpoint; in a process of its own, because torch repeats the error at every child that ends
    later.
    """
    p, hear = started(loses_a_worker, tmp_path, 3)
    said = hear.recv()
    p.join()
    assert "worker" in said or "Connection" in said
    assert newest_checkpoint(tmp_path)["where"]["train_iter"] >= 7
    check_same(whole, result(train(tmp_path, 3), tmp_path))


# -- no number -------------------------------------------------------------------------------------


def test_nan_names_files_windows_and_the_last_good_checkpoint(tmp_path):
    class Poison(Callback):
        "One window of the scene is infinite, as after a division by an empty mask."

        order = -50

        def before_batch(self):
            if self.training and self.train_iter == 7:
                self.xb[0]["ms"][2] = float("inf")
                self.learn.hit = self.xb[0]["index"].tolist()

    learn = learner(CheckpointCallback(tmp_path, steps=2), StopOnNaN(every=50), Poison())
    with pytest.raises(NotFiniteError) as e, learn.no_logging():
        learn.fit(3)
    said, windows = str(e.value), learn.dls.train_ds.windows
    assert "loss is nan at step 8 (" in said and "expansion" in said
    for i in learn.hit:
        s, (y, x, *_) = windows[i]
        assert f"{windows.scenes[s]} row {y} column {x}" in said
    assert (
        f"The last good checkpoint is {tmp_path / 'step-00000006.ckpt'}" in said
        and "lower learning rate" in said
    )
    assert [c.stem for c in list_checkpoints(tmp_path)] == ["step-00000004", "step-00000006"]
    assert all(
        v.isfinite().all()
        for v in newest_checkpoint(tmp_path)["model"].values()
        if v.is_floating_point()
    )
