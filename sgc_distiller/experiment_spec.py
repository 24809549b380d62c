"""What the ``gan:`` section of a schedule says about an experiment."""

from __future__ import annotations

from dataclasses import dataclass, field

from sgc_distiller import checks

__all__ = ["DiscriminatorSpec", "GanSpec", "StudentSpec"]


@dataclass(frozen=True)
class StudentSpec:
    """The generator that is compressed.

    Args:
        init: ``dense`` starts from the trained dense generator's weights, ``random`` from fresh ones.
        width: Share of the dense generator's channels, greater than 0; other than 1 needs ``init: random``,
            since the dense weights fit the dense width only.

    Raises:
        UserError: If a value is not one of these.
    """

    init: str = "dense"
    width: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        checks.one_of(self.init, ("dense", "random"), "init")
        object.__setattr__(self, "width", checks.number(self.width, "width", low=0.0, open_low=True))
        if self.init == "dense" and self.width != 1.0:
            raise checks.ArgumentError(
                f"Expected 'width: 1.0' beside 'init: dense', got {self.width:g}. The dense weights fit the "
                "dense width only; write 'init: random' for another width."
            )


@dataclass(frozen=True)
class DiscriminatorSpec:
    """The discriminator that supervises.

    Args:
        init: ``pretrained`` keeps the weights that came with the dense generator, ``random`` takes fresh
            ones.
        train: Whether its weights go on being trained.
        real: What it is shown as real: the ``data``, or the ``teacher``'s pictures.
        fake: What it is shown as fake: the ``student``'s pictures, or the ``teacher``'s.
        objective: What it is trained on: its ordinary ``adversarial`` loss, the ``consistency`` with the
            teacher, or ``both``.

    Raises:
        UserError: If a value is not one of these.
    """

    init: str = "pretrained"
    train: bool = True
    real: str = "data"
    fake: str = "student"
    objective: str = "adversarial"

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        checks.one_of(self.init, ("pretrained", "random"), "init")
        checks.boolean(self.train, "train")
        checks.one_of(self.real, ("data", "teacher"), "real")
        checks.one_of(self.fake, ("student", "teacher"), "fake")
        checks.one_of(self.objective, ("adversarial", "both", "consistency"), "objective")


@dataclass(frozen=True)
class GanSpec:
    """One experiment: who starts from what, who learns from whom, and how long an epoch is.

    Args:
        objective: ``task`` keeps the GAN's own generator loss (a policy may replace it), ``none`` starts from
            0, so that only what the policies add is minimised.
        student: The generator that is compressed.
        discriminator: The discriminator that supervises.
        steps_per_epoch: Generator updates in one epoch of the schedule.
        epochs: How many epochs the schedule has; by default as many as its policies need.
        output_layer: Whether patterns match the weights of the generator's output layers: ``pruned`` as in
            the paper, or ``dense``. A weight that is named in full is pruned either way.
        lr: Learning rate of both networks; by default the baseline's.
        filter_axis: What Filters and Channels are: of the ``module`` its outputs and inputs, so that a
            filter's bias and norm are pruned with it; or, ``stored``, dimensions 0 and 1 of the weight as in
            Distiller.
        dense_steps: Generator updates of the dense training that ``steps_per_epoch`` is meant for. Studies
            that train a smaller dense GAN shorten the epochs by the same factor.

    Raises:
        UserError: If a value is not one of these.
    """

    objective: str = "task"
    student: StudentSpec = field(default_factory=StudentSpec)
    discriminator: DiscriminatorSpec = field(default_factory=DiscriminatorSpec)
    steps_per_epoch: int = 200
    epochs: int | None = None
    output_layer: str = "pruned"
    lr: float | None = None
    filter_axis: str = "module"
    dense_steps: int | None = None

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        checks.one_of(self.objective, ("task", "none"), "objective")
        checks.integer(self.steps_per_epoch, "steps_per_epoch", low=1)
        for name in ("epochs", "dense_steps"):
            if getattr(self, name) is not None:
                checks.integer(getattr(self, name), name, low=1)
        checks.one_of(self.output_layer, ("pruned", "dense"), "output_layer")
        checks.one_of(self.filter_axis, ("module", "stored"), "filter_axis")
        if self.lr is not None:
            checks.number(self.lr, "lr", low=0.0, open_low=True)
