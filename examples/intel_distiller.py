"""Intel's Distiller prunes a DCGAN that its discriminator supervises; the README says how to install it."""

import copy
import sys
from pathlib import Path
from typing import Any

import torch

from sgc_distiller import Supervision, register
from sgc_distiller.data import batches, open_images
from sgc_distiller.seeding import generator_for
from sgc_distiller.tasks.dcgan import DCGAN

try:
    import distiller

    register(distiller)  # from now on its schedules may name our policies
except Exception as error:  # it is missing, another project, or installed with its old pins
    print(f"Expected Intel's Distiller, which the README says how to install: {error}", file=sys.stderr)
    sys.exit(2)


def train(name: str, supervision: Supervision, scheduler: Any, epochs: int, steps: int = 15) -> None:
    """Run Distiller's loop; a step is one update of the discriminator and one of the generator."""
    optimizer, judge_optimizer = optimizers
    for epoch in range(epochs):
        scheduler.on_epoch_begin(epoch, optimizer)
        for step in range(steps):
            where = epoch, step, steps
            scheduler.on_minibatch_begin(*where, optimizer)
            batch = task.prepare(next(data), generator_for(0, name, epoch, step))
            pictures = supervision.generate(batch)
            loss, _ = supervision.discriminator_loss(batch, pictures)
            judge_optimizer.zero_grad()
            loss.backward()
            judge_optimizer.step()
            loss = scheduler.before_backward_pass(*where, supervision.step(batch, pictures), optimizer)
            optimizer.zero_grad()
            loss.backward()
            scheduler.before_parameter_optimization(*where, optimizer)
            optimizer.step()
            scheduler.on_minibatch_end(*where, optimizer)
        scheduler.on_epoch_end(epoch, optimizer)
        zeros = " ".join(f"{distiller.sparsity(p):4.0%}" for p in generator.parameters() if p.dim() == 4)
        print(f"{name}, epoch {epoch}: loss {loss.item():.3f}, zeros in each layer {zeros}")


torch.manual_seed(0)
task = DCGAN(image_size=32, channels=1, width=8)
data = batches(open_images("digits", 32, 1), batch_size=32, seed=0)
generator, judge = task.build("generator"), task.build("discriminator")
optimizers = task.optimizer("generator", generator, 1e-3), task.optimizer("discriminator", judge, 1e-3)
train("dense", Supervision(task, generator, judge), distiller.CompressionScheduler(generator), epochs=10)

supervision = Supervision(task, generator, judge, teacher=copy.deepcopy(generator))
scheduler = distiller.file_config(generator, optimizers[0], Path(__file__).with_suffix(".yaml"))
train("sparse", supervision, scheduler, epochs=10)
