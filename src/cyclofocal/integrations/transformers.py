"""Transformers: one object that is loss and callback of the Trainer."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cyclofocal.integrations.host import require_host
from cyclofocal.integrations.progress import Loss, check_criterion, set_clock
from cyclofocal.losses import BinaryCyclicalFocalLoss, CyclicalFocalLoss

require_host("transformers", "5.0")

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments  # noqa: E402
from transformers.loss.loss_utils import (  # noqa: E402
    LOSS_MAPPING,
    ForCausalLMLoss,
    ForMaskedLMLoss,
    ForSequenceClassificationLoss,
    ForTokenClassification,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES  # noqa: E402

IGNORE_INDEX = -100
"""Label that the Trainer does not count."""
ROW_WISE = (ForCausalLMLoss, ForMaskedLMLoss, ForSequenceClassificationLoss, ForTokenClassification)
"""Losses of Transformers with a label for each row of logits."""
BOTH = "give the same object to the Trainer twice, as in Trainer(compute_loss_func=loss, callbacks=[loss])"
NEVER_SET = f"progress of this loss is never set; {BOTH}"


class TrainerLoss(TrainerCallback):
    """Loss and callback; give the same object to the Trainer twice: ``compute_loss_func=loss, callbacks=[loss]``.

    For sequence, token and image classification, multi-label classification, masked and causal language models. The
    summed loss is divided by the Trainer's ``num_items_in_batch``, the labels (other than -100) of all batches and
    processes of one optimiser step, so that gradient accumulation and several processes give the gradient of one large
    batch; class weights and sample weights do not change the divisor. Labels are shifted for models whose built-in
    loss does so.

    Progress follows from the Trainer's ``global_step`` and ``max_steps``, which its checkpoints contain. In evaluation
    the loss is plain cross-entropy, smoothed if the criterion is. Eta is in ``trainer.state.log_history``, in what the
    Trainer prints, and in the logs of callbacks that are listed after this one.

    For weights of samples or tokens override ``Trainer.compute_loss``, take them out of the inputs, and call
    ``loss(outputs, labels, num_items_in_batch, sample_weight)``.

    Args:
        criterion: ``CyclicalFocalLoss(reduction="sum")``, or ``BinaryCyclicalFocalLoss(reduction="sum")`` for
            multi-label classification; also from class counts, ``CyclicalFocalLoss.from_counts(..., reduction="sum")``.
        shift_labels: True or False for a model that Transformers does not know; None: inferred from the model.

    Raises:
        TypeError, ValueError: criterion has no clock, counts steps itself (total_steps), or does not sum; in training:
            the model or the labels do not fit, decoder_input_ids are missing, or label_smoothing_factor is given to
            the Trainer instead of the loss.
        RuntimeError: a Trainer, the first or a later one, has it as loss only or as callback only.

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
        self._in_step = False
        self._model_name = "the model"
        self._watch: Any = None

    def __call__(
        self,
        outputs: Any,
        labels: Tensor | None,
        num_items_in_batch: Tensor | int | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss of a batch; without ``num_items_in_batch`` the items of this batch are counted.

        ``sample_weight``: factor per sample (N,), or of the shape of ``labels``; shifted with them.
        """
        if not self._is_callback:
            raise RuntimeError(NEVER_SET)
        self._is_loss = True
        self._stop_watching()
        if labels is None:
            raise ValueError("labels is None; every batch must have a field named labels")
        logits = self._logits(outputs)
        labels = labels.to(logits.device)
        if sample_weight is not None:
            sample_weight = self._row_weights(sample_weight.to(logits.device), logits, labels)
        logits, labels = self._rows(logits, labels)
        criterion = self.criterion.to(logits.device).train(torch.is_grad_enabled())
        if num_items_in_batch is None:
            num_items_in_batch = labels.ne(IGNORE_INDEX).sum()
        # Under nn.DataParallel the count comes once per device and the Trainer multiplies by the devices: hence a sum.
        loss = (
            criterion(logits, labels, sample_weight) / torch.as_tensor(num_items_in_batch, device=logits.device).sum()
        )
        if loss.requires_grad and not self._in_step:
            loss.register_hook(_refuse)  # the loss may be evaluated at any time, but not trained with
        return loss

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._meet(args, kwargs["model"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._meet(args, kwargs["model"])  # again: it may have been added to the Trainer after its construction
        self._stop_watching()
        if _wants_decoder_inputs(kwargs["model"]):
            self._watch = kwargs["model"].register_forward_pre_hook(self._check_decoder_inputs, with_kwargs=True)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the clock once per optimiser step, before its first batch."""
        set_clock(self.criterion, state.global_step, state.max_steps)
        self._in_step, self._is_loss = True, False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._in_step = False
        if not self._is_loss:
            raise RuntimeError(f"the Trainer trains with another loss: {BOTH}")

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add eta to the logs of training steps."""
        logs = kwargs["logs"]
        if "loss" in logs:
            logs["eta"] = state.log_history[-1]["eta"] = float(self.criterion.eta)

    def _meet(self, args: TrainingArguments, model: nn.Module) -> None:
        if args.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor is {args.label_smoothing_factor}, which the Trainer ignores with a"
                " compute_loss_func; give label_smoothing to the criterion"
            )
        if self.shift_labels is None and isinstance(self.criterion, CyclicalFocalLoss):
            _check_head(_base(model))
            self._shifts = _shifts_labels(_base(model))
        self._model_name = type(model).__name__
        self._is_callback = True

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.remove()
            self._watch = None

    def _check_decoder_inputs(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Require decoder inputs; without them T5 raises another error, and BART silently uses the encoder's input."""
        names = ("decoder_input_ids", "decoder_inputs_embeds", "labels")
        if not args and all(kwargs.get(name) is None for name in names):
            self._stop_watching()
            raise ValueError(
                f"{self._model_name} gets no decoder_input_ids, and cannot make them, as the Trainer passes the labels"
                " to compute_loss_func only; give it data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),"
                " which makes them from the labels"
            )

    def _logits(self, outputs: Any) -> Tensor:
        if not isinstance(outputs, dict):
            return outputs[0]
        if "logits" not in outputs:
            raise ValueError(
                f"{self._model_name} returns {', '.join(outputs)}, but no logits; TrainerLoss takes models with one"
                " label per row of logits"
            )
        return outputs["logits"]

    def _rows(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and labels with one row per item."""
        if isinstance(self.criterion, BinaryCyclicalFocalLoss):
            return logits, labels
        fits = labels.shape == logits.shape[:-1] or (logits.dim() == 2 and labels.numel() == len(logits))
        if labels.is_floating_point() or not fits:
            raise ValueError(
                f"labels is {labels.dtype} of shape {tuple(labels.shape)}; for logits of shape {tuple(logits.shape)} it"
                f" must be {_wanted(logits, labels)}"
            )
        if logits.dim() > 2 and self._shifts is None:
            raise ValueError(
                "shift_labels is None, but it is unknown if this model predicts the next token; give True or False"
            )
        if logits.dim() > 2 and self._shifts:
            labels = F.pad(labels[..., 1:], (0, 1), value=IGNORE_INDEX)
        return logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)

    def _row_weights(self, sample_weight: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the weights with one number per row of logits, shifted like the labels."""
        if sample_weight.shape not in (labels.shape, labels.shape[:1]):
            raise ValueError(
                f"sample_weight has shape {tuple(sample_weight.shape)}; for labels of shape {tuple(labels.shape)} it"
                f" must be that, or {tuple(labels.shape[:1])}, one per sample"
            )
        if isinstance(self.criterion, BinaryCyclicalFocalLoss):
            return sample_weight
        sample_weight = sample_weight.view(sample_weight.shape + (1,) * (labels.dim() - sample_weight.dim()))
        sample_weight = sample_weight.expand(labels.shape)
        if logits.dim() > 2 and self._shifts:
            sample_weight = F.pad(sample_weight[..., 1:], (0, 1))
        return sample_weight.reshape(-1)


def _refuse(gradient: Tensor) -> None:
    raise RuntimeError(NEVER_SET)


def _wanted(logits: Tensor, labels: Tensor) -> str:
    """Return the labels to give instead, or why this model cannot train with the loss."""
    if logits.dim() == 4 and labels.dim() == 3:
        return (
            "one per row, classes last; these look like semantic segmentation, classes in dimension 1: override"
            " Trainer.compute_loss, and give the logits, upsampled to the labels, to a CyclicalFocalLoss there"
        )
    if logits.dim() == 3 and labels.dim() == 2 and len(logits) == len(labels):
        return (
            f"class indices of shape {tuple(logits.shape[:-1])}, one per row of logits; a model that aligns labels with"
            " rows itself, as CTC does or one that puts tokens in front, cannot train with this loss"
        )
    return f"class indices of shape {tuple(logits.shape[:-1])} (multi-label: BinaryCyclicalFocalLoss)"


def _base(model: Any) -> Any:
    """Return the model that PEFT wraps, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _wants_decoder_inputs(model: Any) -> bool:
    model = _base(model)
    makes = hasattr(model, "prepare_decoder_input_ids_from_labels")
    generates = makes or type(model).__name__.endswith("ForConditionalGeneration")
    return generates and getattr(getattr(model, "config", None), "is_encoder_decoder", False)


def _check_head(model: Any) -> None:
    loss_type = getattr(model, "loss_type", None)
    if loss_type in LOSS_MAPPING and LOSS_MAPPING[loss_type] not in ROW_WISE:
        raise ValueError(
            f"{type(model).__name__} trains with a loss of another kind, {loss_type}; TrainerLoss takes models with one"
            " label per row of logits: classification of sequences, tokens or images, and language models;"
            " for others override Trainer.compute_loss and call a CyclicalFocalLoss there"
        )


def _shifts_labels(model: Any) -> bool | None:
    """Return True if the model's built-in loss compares a token's logits with the next label; None if unknown."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False  # their decoder inputs are shifted instead
    loss_type = getattr(model, "loss_type", None)
    if loss_type in LOSS_MAPPING:
        return LOSS_MAPPING[loss_type] is ForCausalLMLoss
    # GPT2LMHeadModel and its like have no loss_type and fall back on ForCausalLMLoss
    return True if type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() else None
