"""The original discriminator as supervisor of a pruned generator."""

LOSS_POLICIES: dict[str, type] = {}
