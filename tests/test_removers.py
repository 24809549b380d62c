"""Removers: what they take out in the middle of training, that all else stays as it was, and their errors."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gans import GANS, samples, supervise
from tiny import Silent
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sgc_distiller.data import batches
from sgc_distiller.dependent_masks import DependentMasksPolicy
from sgc_distiller.deployment import example_inputs
from sgc_distiller.errors import ScheduleError, UserError
from sgc_distiller.module_state import parts_of
from sgc_distiller.policies import ScheduledTrainingPolicy
from sgc_distiller.schedule import Schedule
from sgc_distiller.scheduler import CompressionScheduler
from sgc_distiller.structures import find_grouping
from sgc_distiller.training import Trainer

NAMES = ["FilterRemover", "ChannelRemover", "StructureRemover"]
FUNCTIONS = ["remove_filters", "remove_channels"]
Record = dict[str, Any]


def remover(**changes: Any) -> Record:
    """Return a remover as a schedule declares it; None leaves an argument out."""
    values = {
        "class": "FilterRemover",
        "thinning_func_str": "remove_filters",
        "arch": "resnet20_cifar",
        "dataset": "cifar10",
        **changes,
    }
    return {key: value for key, value in values.items() if value is not None}


def schedule(*removers: Record) -> Record:
    """Return a plain schedule that prunes elements in epoch 0 and has removers in epochs 0 and 1."""
    names = [f"thin{index}" for index in range(len(removers))]
    return {
        "pruners": {"p": {"class": "SparsityLevelParameterPruner", "levels": {"0.weight": 0.5}}},
        "extensions": dict(zip(names, removers, strict=True)),
        "policies": [
            {"pruner": {"instance_name": "p"}, "epochs": [0]},
            *({"extension": {"instance_name": name}, "epochs": [0, 1]} for name in names),
        ],
    }


FILTERS = {
    "class": "L1RankedStructureParameterPruner",
    "group_type": "Filters",
    "desired_sparsity": 0.5,
    "weights": ["0.weight", "3.weight"],
}


def filter_schedule(thins_in: int | None, pruner: Record | None = None, **more: Any) -> Record:
    """Return a schedule that prunes filters in epoch 0, with a remover that is listed first."""
    policies: list[Record] = [{"pruner": {"instance_name": "p", **more}, "epochs": [0]}]
    if thins_in is not None:
        policies.insert(0, {"extension": {"instance_name": "thin"}, "epochs": [thins_in]})
    return {
        "pruners": {"p": pruner or FILTERS},
        "extensions": {"thin": remover()},
        "policies": policies,
        "gan": {"epochs": 3},
    }


def network() -> nn.Sequential:
    """Return three convolutions with norms between; of 8 and 6 filters half are pruned."""
    torch.manual_seed(3)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.LeakyReLU(0.2)),
        *(nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.LeakyReLU(0.2)),
        nn.ConvTranspose2d(6, 2, 3),
    )


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    "adam": lambda params: torch.optim.Adam(params, lr=0.01, amsgrad=True),
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=0.01, momentum=0.5, centered=True),
}


def epoch_of(scheduler: CompressionScheduler, optimizer: Any, epoch: int, steps: int = 2) -> None:
    """Train one epoch on fixed pictures."""
    model = scheduler.model
    rng = torch.Generator().manual_seed(epoch)
    scheduler.on_epoch_begin(epoch, optimizer)
    for step in range(steps):
        scheduler.on_minibatch_begin(epoch, step, steps, optimizer)
        made = model(torch.randn(4, 3, 8, 8, generator=rng))
        loss = scheduler.before_backward_pass(epoch, step, steps, (made - 1).pow(2).mean(), optimizer)
        optimizer.zero_grad()
        loss.backward()
        scheduler.before_parameter_optimization(epoch, step, steps, optimizer)
        optimizer.step()
        scheduler.on_minibatch_end(epoch, step, steps, optimizer)
    scheduler.on_epoch_end(epoch, optimizer)


def trained(given: Record, optimizer: str = "sgd", epochs: int = 3) -> tuple[CompressionScheduler, Any]:
    """Return scheduler and optimizer after some epochs of two steps."""
    model = network()
    moving = OPTIMIZERS[optimizer](model.parameters())
    scheduler = Schedule.from_dict(given).build(model, moving)
    for epoch in range(epochs):
        epoch_of(scheduler, moving, epoch)
    return scheduler, moving


def kept_filters(model: nn.Module) -> dict[str, list[Tensor]]:
    """Return, by parameter, the indices along each dimension that are left of a masked `network`."""
    rows = [(model.get_parameter(f"{i}.weight") != 0).flatten(1).any(1).nonzero().flatten() for i in (0, 3)]
    return {
        "0.weight": [rows[0]],
        "3.weight": [rows[1], rows[0]],
        "6.weight": [rows[1]],
        **{f"{place}.{name}": [rows[0]] for place, name in ((0, "bias"), (1, "weight"), (1, "bias"))},
        **{f"{place}.{name}": [rows[1]] for place, name in ((3, "bias"), (4, "weight"), (4, "bias"))},
    }


def left_of(tensor: Tensor, rows: list[Tensor]) -> Tensor:
    for dim, index in enumerate(rows):
        tensor = tensor.index_select(dim, index)
    return tensor


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("thins_in", [0, 1, 2])
def test_training_goes_on_as_if_the_zeros_were_still_there(optimizer: str, thins_in: int):
    masked, masked_optimizer = trained(filter_schedule(None), optimizer)
    thin, thin_optimizer = trained(filter_schedule(thins_in), optimizer)
    kept = kept_filters(masked.model)
    assert [len(rows[0]) for rows in kept.values()][:3] == [4, 3, 3]
    thin_params = dict(thin.model.named_parameters())
    for name, param in masked.model.named_parameters():
        wanted = left_of(param, kept.get(name, []))
        assert thin_params[name].shape == wanted.shape
        # RMSprop and Adam divide gradients by their own size, so of those near 0 rounding is seen
        torch.testing.assert_close(thin_params[name], wanted, rtol=1e-3, atol=2e-4)
        state, thin_state = masked_optimizer.state[param], thin_optimizer.state[thin_params[name]]
        assert state.keys() == thin_state.keys()
        for key, value in state.items():
            left = left_of(value, kept.get(name, [])) if value is not None and value.dim() else value
            torch.testing.assert_close(thin_state[key], left, rtol=1e-3, atol=2e-4)
    (group,) = thin_optimizer.param_groups
    assert all(a is b for a, b in zip(group["params"], thin_params.values(), strict=True))
    assert len(thin_optimizer.state) == len(thin_params)
    pictures = torch.randn(5, 3, 8, 8)
    for mode in (False, True):
        made = [item.model.train(mode)(pictures) for item in (thin, masked)]
        torch.testing.assert_close(*made, rtol=1e-3, atol=1e-3)
    assert all(masker.mask is None for masker in thin.zeros_mask_dict.values()), "nothing but ones was left"


def test_it_acts_before_the_first_forward_pass_when_all_masks_are_applied():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    scheduler = Schedule.from_dict(filter_schedule(0)).build(model, optimizer)
    scheduler.on_epoch_begin(0, optimizer)
    assert model[0].out_channels == 8
    scheduler.on_minibatch_begin(0, 0, 2, optimizer)
    assert (model[0].out_channels, model[3].in_channels, model[6].in_channels) == (4, 4, 3)
    assert (model[1].num_features, model[4].num_features) == (4, 3)
    model[0].weight.data[0] = 0
    scheduler.on_minibatch_begin(0, 1, 2, optimizer)
    assert model[0].out_channels == 4, "once an epoch"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_all_names_and_both_functions_mean_the_same(name: str, function: str):
    given = filter_schedule(0)
    given["extensions"]["thin"] = remover(**{"class": name, "thinning_func_str": function})
    scheduler, _ = trained(given, epochs=1)
    assert sum(item.numel() for item in scheduler.model.parameters()) == 4 * 28 + 8 + 3 * 37 + 6 + 3 * 18 + 2


@pytest.mark.parametrize("function", [*FUNCTIONS, "resnet_cifar_remove_layers"])
def test_where_no_whole_filter_is_zero_nothing_changes(function: str):
    found = []
    for removers in ([remover(thinning_func_str=function)], []):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        scheduler = Schedule.from_dict(schedule(*removers)).build(model, optimizer)
        epoch_of(scheduler, optimizer, 0)
        epoch_of(scheduler, optimizer, 1)
        found.append([scheduler.zeros_mask_dict["0.weight"].mask, *model.parameters()])
    assert (found[0][1] == 0).sum() == found[0][1].numel() // 2
    for left, right in zip(*found, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_masks_of_elements_are_cut_alike():
    given = filter_schedule(1)
    given["pruners"]["fine"] = {"class": "SparsityLevelParameterPruner", "levels": {"6.weight": 0.4}}
    given["policies"].append({"pruner": {"instance_name": "fine"}, "epochs": [0]})
    scheduler, optimizer = trained(given, epochs=1)
    before = scheduler.zeros_mask_dict["6.weight"].mask
    rows = kept_filters(scheduler.model)["6.weight"]
    scheduler.on_epoch_begin(1, optimizer)
    scheduler.on_minibatch_begin(1, 0, 2, optimizer)
    assert torch.equal(scheduler.zeros_mask_dict["6.weight"].mask, left_of(before, rows))
    assert (scheduler.zeros_mask_dict["6.weight"].mask == 0).any()
    epoch_of(scheduler, optimizer, 2)
    hidden = scheduler.zeros_mask_dict["6.weight"].mask == 0
    assert (scheduler.model[6].weight[hidden] == 0).all()


def test_masked_gradients_and_dense_copies_follow():
    args = {"mask_on_forward_only": True, "mask_gradients": True, "use_double_copies": True}
    given = filter_schedule(0, args=args)
    given["pruners"]["fine"] = {"class": "SparsityLevelParameterPruner", "levels": {"6.weight": 0.4}}
    given["policies"].append({"pruner": {"instance_name": "fine", "args": args}, "epochs": [0]})
    model = network()
    dense = copy.deepcopy(model)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    scheduler = Schedule.from_dict(given).build(model, optimizer)
    scheduler.on_epoch_begin(0, optimizer)
    full_mask = scheduler.zeros_mask_dict["3.weight"].mask
    scheduler.on_minibatch_begin(0, 0, 2, optimizer)
    masker = scheduler.zeros_mask_dict["6.weight"]
    rows = find_grouping("Filters", full_mask.shape).gather(full_mask).any(1).nonzero().flatten()
    assert torch.equal(masker.unmasked_copy, dense[6].weight[rows])
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert masker.mask.shape == model[6].weight.shape
    assert (model[6].weight.grad[masker.mask == 0] == 0).all()
    assert (model[6].weight.grad != 0).any()
    scheduler.before_parameter_optimization(0, 0, 2, optimizer)
    assert torch.equal(model[6].weight.detach(), dense[6].weight[rows])


def test_a_pruner_that_goes_on_counts_what_is_left(caplog: pytest.LogCaptureFixture):
    given = filter_schedule(0)
    given["policies"][1]["epochs"] = [0, 1, 2]
    given["policies"][0]["epochs"] = [0, 2]
    with caplog.at_level(logging.WARNING):
        scheduler, _ = trained(given)
    message = (
        "<dict>: the pruner 'p' goes on after filters were taken out: its shares are of what is left then."
    )
    assert [record.message for record in caplog.records] == [message]
    # 8 and 6 filters: 4 and 3 after epoch 0; int(0.5 * 3) = 1 more goes in epoch 1
    assert (scheduler.model[0].out_channels, scheduler.model[3].out_channels) == (2, 2)


def test_a_leader_and_measured_activations_begin_anew():
    given = filter_schedule(0)
    given["pruners"]["p"] = {**FILTERS, "group_dependency": "Leader", "weights": ["0.weight"]}
    given["pruners"]["apoz"] = {
        "class": "ActivationMeanRankedFilterPruner",
        "group_type": "Filters",
        "desired_sparsity": 0.5,
        "weights": ["3.weight"],
    }
    soft = {"mask_on_forward_only": True, "use_double_copies": True}
    given["policies"][1]["epochs"] = [0, 1, 2]
    given["policies"][1]["pruner"]["args"] = soft
    given["policies"].append({"pruner": {"instance_name": "apoz", "args": soft}, "epochs": [1, 2]})
    scheduler, _ = trained(given)
    assert scheduler.model[0].out_channels == 4
    assert scheduler.zeros_mask_dict["0.weight"].mask.flatten(1).any(1).sum() == 2
    assert scheduler.zeros_mask_dict["3.weight"].mask.flatten(1).any(1).sum() == 3


def test_regularizers_go_on_with_the_new_parameters():
    given = filter_schedule(0)
    given["regularizers"] = {"l1": {"class": "L1Regularizer", "reg_regims": {"3.weight": 0.1}}}
    given["policies"].append({"regularizer": {"instance_name": "l1"}, "epochs": [0, 1, 2]})
    scheduler, optimizer = trained(given, epochs=0)
    scheduler.on_epoch_begin(0, optimizer)
    scheduler.on_minibatch_begin(0, 0, 2, optimizer)
    zero = torch.zeros((), requires_grad=True)
    loss = scheduler.before_backward_pass(0, 0, 2, zero, optimizer)
    torch.testing.assert_close(loss, 0.1 * scheduler.model[3].weight.abs().sum())
    loss.backward()
    assert scheduler.model[3].weight.grad is not None


def test_the_variance_of_one_channel_that_is_left_adds_nothing():
    given = filter_schedule(0, {**FILTERS, "desired_sparsity": 0.9})
    given["regularizers"] = {
        "even": {"class": "GroupVarianceRegularizer", "reg_regims": {"3.weight": [0.1, "Channels"]}}
    }
    given["policies"].append({"regularizer": {"instance_name": "even"}, "epochs": [0, 1, 2]})
    scheduler, _ = trained(given)
    assert scheduler.model[3].in_channels == 1
    assert all(item.isfinite().all() for item in scheduler.model.parameters())


def test_a_pruner_that_cannot_go_on_says_why():
    given = filter_schedule(1, {**FILTERS, "weights": ["3.weight"]})
    given["pruners"]["pairs"] = {**FILTERS, "weights": ["3.weight"], "group_size": 2}
    given["policies"].append({"pruner": {"instance_name": "pairs"}, "epochs": [2]})
    message = (
        r"The pruner 'pairs' cannot go on after filters were taken out: weights: 3\.weight: Expected a "
        r"number of filters that is a multiple of 'group_size' \(2\), got 3\. Let it end before, or let the "
        r"remover act when it is done\."
    )
    with pytest.raises(UserError, match=message):
        trained(given)


def test_what_belongs_to_filters_that_stay_follows_their_later_masks():
    model = Residual()
    given = filter_schedule(0, {**FILTERS, "weights": ["inner.weight", "first.weight"]})
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    scheduler = Schedule.from_dict(given).build(model, optimizer)
    epoch_of(scheduler, optimizer, 0)
    assert model.first.out_channels == 2
    mask = torch.ones_like(model.inner.weight)
    mask[3] = 0
    scheduler.zeros_mask_dict["inner.weight"].mask = mask
    (completing,) = [item for item in scheduler.policies[0] if isinstance(item, DependentMasksPolicy)]
    completing.on_epoch_begin(model, scheduler.zeros_mask_dict, {})
    assert scheduler.zeros_mask_dict["inner.bias"].mask.tolist() == [1, 1, 1, 0]


class Noting(ScheduledTrainingPolicy):
    """A user's policy that hears of it."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[int, Any]] = []

    def on_thinned(self, model: Any, zeros_mask_dict: Any) -> None:
        self.heard.append((model[0].out_channels, zeros_mask_dict["0.weight"].mask))


def test_policies_hear_of_it_once():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    scheduler = Schedule.from_dict(filter_schedule(0)).build(model, optimizer)
    policy = Noting()
    scheduler.add_policy(policy, ending_epoch=1)
    scheduler.add_policy(policy, epochs=[2])
    for epoch in range(3):
        epoch_of(scheduler, optimizer, epoch)
    assert policy.heard == [(4, None)]


class Residual(nn.Module):
    """Adds up what two convolutions make of one thing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.stem = nn.Conv2d(4, 4, 3, padding=1)
        self.inner = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        made: Tensor = self.last(self.stem(x) + self.inner(x))
        return made


def test_zero_filters_that_cannot_go_stay_masked_and_are_told(caplog: pytest.LogCaptureFixture):
    given = filter_schedule(0, {**FILTERS, "weights": ["inner.weight"]})
    model = Residual()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    scheduler = Schedule.from_dict(given).build(model, optimizer)
    before = [id(item) for item in model.parameters()]
    with caplog.at_level(logging.WARNING):
        epoch_of(scheduler, optimizer, 0)
    assert [item.message for item in caplog.records if item.levelno >= logging.WARNING] == [
        "Epoch 0: zero filters stay in the network, masked: inner: last reads something there that depends "
        "on the input, to which stem adds."
    ]
    assert [id(item) for item in model.parameters()] == before
    assert (scheduler.zeros_mask_dict["inner.weight"].mask == 0).sum() == 2 * 4 * 9


@pytest.mark.parametrize("name", GANS)
def test_gans_draw_what_they_draw_without_it(name: str, device: torch.device):
    """Three epochs of supervised pruning, coupled filters: with the remover in epoch 1 and without it."""
    found = []
    for thins_in in (1, None):
        task = GANS[name]()
        supervision = supervise(task, device)
        pruner = {**FILTERS, "weights": ["*.weight"], "group_dependency": "Coupled"}
        given = filter_schedule(thins_in, pruner)
        given["extensions"]["own"] = {"class": "SelfSupervisedPolicy"}
        given["policies"].append(
            {"extension": {"instance_name": "own"}, "starting_epoch": 0, "ending_epoch": 3, "frequency": 1}
        )
        given["gan"] = {"epochs": 3, "output_layer": "dense"}
        optimizers = [
            torch.optim.SGD(item.parameters(), lr=1e-3, momentum=0.9)
            for item in (supervision.generator, supervision.discriminator)
        ]
        before = sum(item.numel() for item in supervision.generator.parameters())
        scheduler = Schedule.from_dict(given).build(supervision.generator, optimizers[0])
        data = samples(task)
        trainer = Trainer(
            task,
            supervision,
            *optimizers,
            batches=lambda start, data=data: batches(data, 3, 0, start, device=device),
            steps_per_epoch=1,
            epochs=3,
            seed=0,
            observer=Silent(),
            scheduler=scheduler,
        )
        trainer.run()
        deployed = task.deploy(supervision.generator)
        inputs = example_inputs(task, deployed, data, 2)
        with torch.no_grad():
            pictures = [part.network(*inputs[part.name]) for part in parts_of(deployed)]
        found.append((before, sum(item.numel() for item in supervision.generator.parameters()), pictures))
    (whole, thin, drawn), (_, masked, wanted) = found
    assert masked == whole
    assert thin < 0.6 * whole
    for left, right in zip(drawn, wanted, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-3)


def test_nothing_is_asked_in_advance_of_what_is_left():
    given = filter_schedule(1)
    given["pruners"]["late"] = {"class": "SparsityLevelParameterPruner", "levels": {"3.weight": 0.25}}
    given["policies"].append({"pruner": {"instance_name": "late"}, "epochs": [2]})
    made = Schedule.from_dict(given)
    assert made.sparsity_plan(network()) == [
        {"0.weight": 0.5, "3.weight": 0.5},
        {"0.weight": None, "3.weight": None},
        {"0.weight": None, "3.weight": 0.25},
    ]
    assert made.asked_overall(network())[1:] == [None, None]
    without = Schedule.from_dict(filter_schedule(None))
    assert without.sparsity_plan(network())[2] == {"0.weight": 0.5, "3.weight": 0.5}


# What is refused, and what is said.


def test_removal_of_layers_is_read_and_said_to_have_no_effect(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        Schedule.from_dict(schedule(remover(thinning_func_str="resnet_cifar_remove_layers"), remover()))
    assert [item.message for item in caplog.records if item.levelno >= logging.WARNING] == [
        "<dict>: resnet_cifar_remove_layers takes whole layers out of one classifier of Distiller's and has "
        "no effect here; zeroed layers stay in the network."
    ]


def test_a_schedule_that_thins_when_it_has_pruned_says_nothing(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        Schedule.from_dict(schedule(remover(), remover(**{"class": "ChannelRemover"})))
        Schedule.from_dict(schedule())
    assert not caplog.records


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"thinning_func_str": "remove_filter"},
            r"extensions\.thin0\.thinning_func_str: Expected one of remove_filters, remove_channels, "
            r"resnet_cifar_remove_layers, got 'remove_filter'\. Did you mean 'remove_filters'\?",
        ),
        ({"thinning_func_str": 1}, r"extensions\.thin0\.thinning_func_str: Expected one of .*, got 1"),
        ({"arch": 20}, r"extensions\.thin0\.arch: Expected a name, got 20\."),
        ({"dataset": []}, r"extensions\.thin0\.dataset: Expected a name, got \[\]\."),
        ({"dataset": None}, r"extensions\.thin0: Expected argument 'dataset' of FilterRemover, got none\."),
        ({"layers": "all"}, r"extensions\.thin0\.layers: Expected an argument of FilterRemover"),
    ],
)
def test_mistakes_are_refused_when_the_schedule_is_read(changes: Record, message: str):
    with pytest.raises(ScheduleError, match=message):
        Schedule.from_dict(schedule(remover(**changes)))


def test_the_discriminator_is_not_made_thinner():
    given = filter_schedule(None)
    given["gan"]["discriminator"] = {"schedule": schedule(remover())}
    message = (
        r"gan\.discriminator\.schedule\.policies\[1\]: Expected no remover in the discriminator's schedule: "
        r"the discriminator judges dense and pruned pictures alike and is not kept, so its zeros stay masked"
        r"\. Leave the policy out\."
    )
    with pytest.raises(ScheduleError, match=message):
        Schedule.from_dict(given)


@pytest.mark.parametrize("epochs", [[0, 1], [2]])
def test_layers_of_another_size_are_not_compared(epochs: list[int]):
    given = filter_schedule(1)
    given["extensions"]["lit"] = {"class": "IntermediateDistillationPolicy"}
    given["policies"].append({"extension": {"instance_name": "lit"}, "epochs": epochs})
    message = (
        r"policies\[2\]: Expected 'lit', which compares layers of the same size, to end before filters are "
        rf"taken out in epoch 1, got epoch {epochs[-1]}\. Let it end earlier, or let the remover act after "
        r"it\."
    )
    with pytest.raises(ScheduleError, match=message):
        Schedule.from_dict(given)
    given["policies"][-1]["epochs"] = [0]
    Schedule.from_dict(given)


class Looking(nn.Module):
    """A network whose way cannot be followed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.conv(x) if x.sum() > 0 else x
        return made


def test_a_network_that_cannot_be_followed_is_refused_before_training():
    model = Looking()
    given = filter_schedule(2, {**FILTERS, "weights": ["conv.weight"], "prune_output": True})
    with pytest.raises(
        ScheduleError, match=r"policies\[0\]: Looking: the way of its channels cannot be foll"
    ):
        Schedule.from_dict(given).build(model, OPTIMIZERS["sgd"](model.parameters()))


class Distributed(DistributedDataParallel):
    """One that needs no other process."""

    def __init__(self, module: nn.Module) -> None:
        nn.Module.__init__(self)
        self.module = module


def test_a_distributed_model_is_refused_before_training():
    model = Distributed(network())
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    message = (
        r"policies\[0\]: Expected a model that one process trains: DistributedDataParallel goes on "
        r"exchanging the gradients of the parameters that it began with\. Leave the remover out and take the "
        r"zeros out of the finished run \(`sgc thin`\)\."
    )
    with pytest.raises(ScheduleError, match=message):
        Schedule.from_dict(filter_schedule(0)).build(model, optimizer)


def test_a_wrapped_model_is_made_thinner():
    model = nn.DataParallel(network())
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    scheduler = Schedule.from_dict(filter_schedule(0)).build(model, optimizer)
    for epoch in range(2):
        epoch_of(scheduler, optimizer, epoch)
    masked, _ = trained(filter_schedule(None), epochs=2)
    kept = kept_filters(masked.model)["3.weight"]
    torch.testing.assert_close(model.module[3].weight, left_of(masked.model[3].weight, kept))


def test_the_optimizer_is_needed():
    model = network()
    scheduler = Schedule.from_dict(filter_schedule(0)).build(model)
    scheduler.on_epoch_begin(0)
    message = (
        r"remove_filters in epoch 0: Expected the optimizer in scheduler\.on_minibatch_begin\(epoch, step, "
        r"steps, optimizer\), got none: a remover gives it new parameters\."
    )
    with pytest.raises(UserError, match=message):
        scheduler.on_minibatch_begin(0, 0, 2)


def test_an_optimizer_that_cannot_go_on_is_refused_and_nothing_is_changed():
    model = network()
    optimizer = torch.optim.Adafactor(model.parameters())
    scheduler = Schedule.from_dict(filter_schedule(1)).build(model, optimizer)
    epoch_of(scheduler, optimizer, 0)
    before = copy.deepcopy(model.state_dict())
    message = (
        r"remove_filters in epoch 1: Expected an optimizer that remembers one number for each element, but "
        r"'row_var' that Adafactor keeps of '0\.weight' is of shape \(8, 3, 3, 1\), which cannot be cut as "
        r"the weight is\. Leave the remover out and take the zeros out of the finished run \(`sgc thin`\)\."
    )
    with pytest.raises(UserError, match=message):
        epoch_of(scheduler, optimizer, 1)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
