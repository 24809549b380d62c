"""Prune the generators of trained GANs under the supervision of their discriminators.

A Distiller schedule drives the pruning; `SelfSupervisedPolicy`, declared in it, compares what the original
discriminator says of the dense and of the pruned generator ("Self-Supervised GAN Compression",
https://arxiv.org/abs/2007.01491). The loop, with every hook at its place::

    supervision = Supervision(task, generator, discriminator, teacher)      # before the schedule is read
    scheduler = file_config(generator, generator_optimizer, "schedule.yaml")

    for epoch in range(epochs):
        scheduler.on_epoch_begin(epoch, generator_optimizer)
        for i in range(steps):
            scheduler.on_minibatch_begin(epoch, i, steps, generator_optimizer)
            batch = task.prepare(next(data), rng)                           # noise is drawn here

            outputs = supervision.generate(batch)                           # the discriminator's phase
            loss, _ = supervision.discriminator_loss(batch, outputs)
            discriminator_optimizer.zero_grad(); loss.backward(); discriminator_optimizer.step()

            loss = supervision.step(batch, outputs)                         # the generator's phase
            loss = scheduler.before_backward_pass(epoch, i, steps, loss, generator_optimizer)
            generator_optimizer.zero_grad(); loss.backward()
            scheduler.before_parameter_optimization(epoch, i, steps, generator_optimizer)
            generator_optimizer.step()
            scheduler.on_minibatch_end(epoch, i, steps, generator_optimizer)
        scheduler.on_epoch_end(epoch, generator_optimizer)

`sgc_distiller.training.Trainer` is this loop with checkpoints, records and a watch for not-a-number; the
command ``sgc`` runs it.
"""

from sgc_distiller._version import __version__
from sgc_distiller.distiller_plugin import register
from sgc_distiller.loss_policies import (
    IntermediateDistillationPolicy,
    OutputDistillationPolicy,
    SelfSupervisedPolicy,
)
from sgc_distiller.policies import (
    LossComponent,
    LRPolicy,
    PolicyLoss,
    ScheduledTrainingPolicy,
)
from sgc_distiller.pruning_policy import PruningPolicy
from sgc_distiller.regularization_policy import RegularizationPolicy
from sgc_distiller.schedule import dict_config, file_config
from sgc_distiller.scheduler import CompressionScheduler
from sgc_distiller.supervision import Supervision
from sgc_distiller.tasks.base import GANTask

__all__ = [
    "CompressionScheduler",
    "GANTask",
    "IntermediateDistillationPolicy",
    "LRPolicy",
    "LossComponent",
    "OutputDistillationPolicy",
    "PolicyLoss",
    "PruningPolicy",
    "RegularizationPolicy",
    "ScheduledTrainingPolicy",
    "SelfSupervisedPolicy",
    "Supervision",
    "__version__",
    "dict_config",
    "file_config",
    "register",
]
