"Run a function in several processes with gloo between them."

import multiprocessing
import os

import torch
import torch.distributed as dist

PROCESSES = multiprocessing.get_context("fork")  # have everything imported already


def _process(f, folder, rank, world, args):
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world))
    torch.set_num_threads(1)  # the threads of the parent are not there after a fork
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world
    )
    torch.save(f(*args), folder / f"{f.__name__}{rank}.pt")
    dist.barrier()  # nobody closes a connection that another still uses
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may outlive the group: a usual exit would abort on them


def on_two(f, folder, *args):
    "What `f(*args)` returns in each of two processes."
    folder.mkdir(exist_ok=True)
    ps = [PROCESSES.Process(target=_process, args=(f, folder, r, 2, args)) for r in range(2)]
    for p in ps:
        p.start()
    for p in ps:
        p.join()
    assert [p.exitcode for p in ps] == [0, 0]
    (folder / "group").unlink(missing_ok=True)
    return [torch.load(folder / f"{f.__name__}{r}.pt", weights_only=False) for r in range(2)]
