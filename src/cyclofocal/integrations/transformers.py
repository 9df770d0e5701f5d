"""Transformers: loss and callback in one object for its Trainer."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cyclofocal.integrations.clock import Loss, check_criterion, set_clock
from cyclofocal.integrations.host import require_host
from cyclofocal.losses import BinaryCyclicalFocalLoss, CyclicalFocalLoss

require_host("transformers", "5.0")

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments  # noqa: E402
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss  # noqa: E402
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES  # noqa: E402

IGNORE_INDEX = -100
"""What the Trainer leaves out when it counts labels."""


class TrainerLoss(TrainerCallback):
    """Give the same object to the Trainer twice: ``compute_loss_func=loss, callbacks=[loss]``.

    For sequence, token and image classification, multi-label classification, masked and causal language models. The
    summed loss is divided by the Trainer's ``num_items_in_batch``, the labels (other than -100) of all batches and
    processes of one optimiser step, so that gradient accumulation and several processes give the gradient of one big
    batch; with class weights too, whose sum does not divide. Labels are shifted for the models whose own loss does it.

    The clock follows from the Trainer's ``global_step`` and ``max_steps``, which its checkpoints hold. In evaluation
    the loss is plain cross-entropy, smoothed if the criterion is.

    Args:
        criterion: ``CyclicalFocalLoss(reduction="sum")``, or ``BinaryCyclicalFocalLoss(reduction="sum")`` for
            multi-label classification.
        shift_labels: None: known from the model; True or False for a model that Transformers does not know.

    Raises:
        TypeError, ValueError: criterion has no clock, counts by itself (total_steps), or does not sum; in training:
            the labels do not fit, or label_smoothing_factor is given to the Trainer instead of the loss.
        RuntimeError: the Trainer has it as loss or as callback only.

    Example:
        >>> loss = TrainerLoss(CyclicalFocalLoss(gamma_hc=2.0, reduction="sum"))
    """

    def __init__(self, criterion: Loss, *, shift_labels: bool | None = None) -> None:
        check_criterion(criterion)
        if criterion.reduction != "sum":
            raise ValueError(f'reduction is {criterion.reduction!r}; it must be "sum", the Trainer counts the items')
        if isinstance(criterion, CyclicalFocalLoss) and criterion.ignore_index != IGNORE_INDEX:
            raise ValueError(f"ignore_index is {criterion.ignore_index}; it must be {IGNORE_INDEX}, as in the Trainer")
        self.criterion = criterion
        self.shift_labels = shift_labels
        self._shifts = shift_labels
        self._is_callback = False
        self._is_loss = False

    def __call__(self, outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The Trainer's ``compute_loss_func``; without ``num_items_in_batch`` the items of this batch are counted."""
        if not self._is_callback:
            raise RuntimeError(
                "nobody moves the clock of this loss: give the same object to the Trainer as a callback too, as in"
                " Trainer(compute_loss_func=loss, callbacks=[loss])"
            )
        self._is_loss = True
        if labels is None:
            raise ValueError("labels is None; every batch must have a field named labels")
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        logits, labels = self._rows(logits, labels.to(logits.device))
        criterion = self.criterion.to(logits.device).train(torch.is_grad_enabled())
        if num_items_in_batch is None:
            num_items_in_batch = labels.ne(IGNORE_INDEX).sum()
        # Under nn.DataParallel the count comes once per device and the Trainer multiplies by the devices: hence a sum.
        return criterion(logits, labels) / torch.as_tensor(num_items_in_batch, device=logits.device).sum()

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._meet(args, kwargs["model"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._meet(args, kwargs["model"])  # again: it may have been added to the Trainer after its construction

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Once per optimiser step, before its first batch."""
        set_clock(self.criterion, state.global_step, state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self._is_loss:
            raise RuntimeError(
                "the Trainer trains with another loss: give it this object as compute_loss_func too, as in"
                " Trainer(compute_loss_func=loss, callbacks=[loss])"
            )

    def _meet(self, args: TrainingArguments, model: nn.Module) -> None:
        if args.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor is {args.label_smoothing_factor}, which the Trainer ignores beside a"
                " compute_loss_func; give label_smoothing to the criterion"
            )
        self._shifts = _shifts_labels(model) if self.shift_labels is None else self.shift_labels
        self._is_callback = True

    def _rows(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One row per item."""
        if isinstance(self.criterion, BinaryCyclicalFocalLoss):
            return logits, labels
        if labels.is_floating_point() or labels.numel() != logits[..., 0].numel():
            raise ValueError(
                f"labels is {labels.dtype} of shape {tuple(labels.shape)}; for logits of shape {tuple(logits.shape)} it"
                f" must be class indices of shape {tuple(logits.shape[:-1])} (multi-label: BinaryCyclicalFocalLoss)"
            )
        if logits.dim() > 2 and self._shifts is None:
            raise ValueError("shift_labels is None, and this model does not tell whether it predicts the next token")
        if logits.dim() > 2 and self._shifts:
            labels = F.pad(labels[..., 1:], (0, 1), value=IGNORE_INDEX)
        return logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)


def _shifts_labels(model: Any) -> bool | None:
    """Whether the model's own loss compares the logits of a token with the next label; None: it does not tell."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model  # from under PEFT
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False  # their decoder inputs are shifted instead
    loss_type = getattr(model, "loss_type", None)
    if loss_type in LOSS_MAPPING:
        return LOSS_MAPPING[loss_type] is ForCausalLMLoss
    # GPT2LMHeadModel and its like have no loss_type and fall back on ForCausalLMLoss
    return True if type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() else None
