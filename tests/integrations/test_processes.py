"""Promise: two processes under Accelerate, Lightning, timm or the Transformers Trainer share progress and step."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cyclofocal.schedules import cyclical_eta

for host in ("accelerate", "lightning", "timm", "transformers"):
    pytest.importorskip(host)

PROGRAM = """
import json, os, socket, sys
import torch
import test_accelerate, test_timm
from cyclofocal.integrations.timm import create_loss
from lightning.pytorch import Callback, Trainer
from test_lightning import QUIET, Classifier, CyclicalFocalCallback, loader
from test_transformers import train

def write(host, rank, *row):
    with open(f"{sys.argv[1]}/{host}{rank}.json", "w") as file:
        json.dump(row, file)

class Report(Callback):
    def on_train_end(self, trainer, module):
        write("lightning", trainer.global_rank, module.seen, module.layer.weight.tolist(), module.stepped[0][0])

def accelerate(rank):
    training = test_accelerate.Training()
    training.run(test_accelerate.EPOCHS)
    write("accelerate", rank, training.seen, training.model.module.weight.tolist())

def timm(rank):
    torch.distributed.init_process_group("gloo")
    training = test_timm.Training(f"{sys.argv[1]}/{rank}", create_loss())
    training.task.prepare_distributed()
    torch.manual_seed(rank)
    training.run([(torch.randn(4, 3, 32, 32), torch.randint(3, (4,))) for _ in range(test_timm.BATCHES)])
    write("timm", rank, training.seen, [p.flatten()[:3].tolist() for p in training.model.parameters()])

def transformers(rank):
    settings = {"gradient_accumulation_steps": 2, "max_steps": 4, "ddp_backend": "gloo"}
    _, watch = train(sys.argv[1], "token classification", **settings)
    write("transformers", rank, watch.etas, [gradient.tolist() for gradient in watch.gradients])

def in_turn(rank, train, port):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.makedirs(f"{sys.argv[1]}/{rank}", exist_ok=True)
    train(rank)

for host in (accelerate, timm, transformers):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(in_turn, (host, port), 2, start_method="fork")
callbacks = [CyclicalFocalCallback(weight_decay=(0.1, 0.8)), Report()]
settings = QUIET | {"devices": 2, "strategy": "ddp_fork", "max_epochs": 3, "accumulate_grad_batches": 2}
Trainer(**settings, callbacks=callbacks).fit(Classifier(), loader(10))

_, watch = train(sys.argv[1], "token classification", per_device_train_batch_size=8, max_steps=4)
write("one big batch", 0, [gradient.tolist() for gradient in watch.gradients])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{PROGRAM}"]
    done = subprocess.run([*command, str(folder)], timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def read(folder, host, processes=2):
    """Read the results of every process, field by field."""
    return zip(*(json.loads((folder / f"{host}{rank}.json").read_text()) for rank in range(processes)), strict=True)


def etas(step_of_batch):
    last = max(step_of_batch)
    return pytest.approx([cyclical_eta(step / last) for step in step_of_batch], abs=1e-6)


def test_lightning(folder):
    seen, weights, decays = read(folder, "lightning")
    assert seen[0] == seen[1] == etas([epoch * 3 + batch // 2 for epoch in range(3) for batch in range(5)])
    assert weights[0] == weights[1]
    assert decays[0] == decays[1] == pytest.approx([0.1, 0.0])


def test_accelerate(folder):
    seen, weights = read(folder, "accelerate")
    assert seen[0] == seen[1] == etas([epoch * 2 + batch // 2 for epoch in range(3) for batch in range(3)])
    assert weights[0] == weights[1]


def test_timm(folder):
    seen, weights = read(folder, "timm")
    assert seen[0] == seen[1] == etas([epoch * 3 + batch // 2 for epoch in range(3) for batch in range(5)])
    assert weights[0] == weights[1]


def test_transformers_gives_the_gradient_of_one_big_batch(folder):
    seen, gradients = read(folder, "transformers")
    assert seen[0] == seen[1] == etas([0, 0, 1, 1, 2, 3, 3])  # the epoch ends within the third step
    (one,) = read(folder, "one big batch", processes=1)
    for both in zip(*gradients, *one, strict=True):
        first, second, big = (torch.tensor(gradient, dtype=torch.float64) for gradient in both)
        assert (first - big).abs().max() < 1e-6
        assert (second - big).abs().max() < 1e-6
