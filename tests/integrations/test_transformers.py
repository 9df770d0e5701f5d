"""Promise: in the Trainer, at gammas 0, the loss is the model's, is accumulated like it, and eta follows the steps."""

import math

import pytest
import torch

pytest.importorskip("transformers")
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
)

from cyclofocal import BinaryCyclicalFocalLoss, CyclicalFocalLoss
from cyclofocal.integrations.transformers import TrainerLoss
from cyclofocal.schedules import cyclical_eta

LENGTH, WORDS, LABELS, SAMPLES = 6, 11, 3, 20
PLAIN = {"gamma_pos": 0.0, "gamma_neg": 0.0, "gamma_hc": 0.0}
BERT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
BERT |= {"vocab_size": WORDS, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": LABELS}
GPT2 = {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": WORDS, "n_positions": LENGTH, "bos_token_id": 0}
GPT2 |= {"eos_token_id": 0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
LLAMA = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
LLAMA |= {"vocab_size": WORDS, "max_position_embeddings": LENGTH}
VIT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "num_labels": LABELS}
VIT |= {"image_size": 8, "patch_size": 4, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
T5 = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": WORDS, "dropout_rate": 0.0}
T5 |= {"decoder_start_token_id": 0}
MODELS = {
    "sequence classification": lambda: BertForSequenceClassification(BertConfig(**BERT)),
    "token classification": lambda: BertForTokenClassification(BertConfig(**BERT)),
    "image classification": lambda: ViTForImageClassification(ViTConfig(**VIT)),
    "masked language model": lambda: BertForMaskedLM(BertConfig(**BERT)),
    "causal language model": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)),
    "causal language model without loss_type": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
    "encoder and decoder": lambda: T5ForConditionalGeneration(T5Config(**T5)),
}


def build(kind):
    """Use double precision, so that only a wrong gradient differs."""
    torch.manual_seed(0)
    return MODELS[kind]().double()


def samples(kind):
    """Inputs and labels; a growing number of token labels is -100, so that batches differ in their count."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for row in range(SAMPLES):
        words = torch.randint(1, WORDS, (LENGTH,), generator=generator)
        sample = {"input_ids": words, "labels": words.clone()}
        if kind == "image classification":
            sample = {"pixel_values": torch.randn(3, 8, 8, generator=generator, dtype=torch.float64)}
        if kind.endswith("classification"):
            shape = (LENGTH,) if kind.startswith("token") else ()
            sample["labels"] = torch.randint(LABELS, shape, generator=generator)
        if kind == "encoder and decoder":
            sample["decoder_input_ids"] = torch.cat([torch.zeros(1, dtype=torch.int64), words[:-1]])
        if sample["labels"].dim():
            sample["labels"][LENGTH - row % 4 :] = -100
        rows.append(sample)
    return rows


@pytest.mark.parametrize(("scheme", "tau"), [(None, 1.0), ("balanced", 0.0), ("sqrt", 0.5), ("effective", 1.0)])
def test_counts_give_class_weights_and_the_prior(tmp_path, prior_loss, scheme, tau):
    """The loss of the Trainer's step, divided by the items, and the gradient of the classifier's bias."""
    settings = {"class_weight": scheme, "tau": tau, "reduction": "sum", **PLAIN}
    criterion, seen = CyclicalFocalLoss.from_counts([500, 40, 9], **settings), []
    criterion.register_forward_hook(lambda _, args, loss: seen.append((*args[:2], loss.item())))
    options = {"max_steps": 1, "per_device_train_batch_size": 8, "max_grad_norm": 0.0}
    _, watch = train(tmp_path, criterion=criterion, **options)
    logits, target, loss = seen[0]
    value, gradient = prior_loss(logits.detach(), target, [500, 40, 9], tau, scheme)
    weights = 1.0 if criterion.weight is None else criterion.weight[target].sum().item() / 8  # the divisor: the items
    assert loss / 8 == pytest.approx(value * weights, rel=1e-5)
    assert watch.gradients[0][-LABELS:].tolist() == pytest.approx(gradient.sum(0) * weights, rel=1e-5)
    assert logits.dtype is torch.float64


def test_class_weights_start_late(tmp_path):
    criterion = CyclicalFocalLoss.from_counts([9, 4, 1], class_weight="sqrt", weight_start=0.5, reduction="sum")
    weighted: list = []
    criterion.register_forward_pre_hook(lambda *_: weighted.append(criterion.weight_now() is not None))
    train(tmp_path, criterion=criterion, max_steps=5, gradient_accumulation_steps=2)
    assert weighted == [step / 4 >= 0.5 for step in range(5) for _ in range(2)]


def test_counts_of_other_labels_are_refused(tmp_path):
    criterion = CyclicalFocalLoss.from_counts([9, 1], tau=1.0, reduction="sum")
    with pytest.raises(ValueError, match=r"logit_offset has shape \(2,\); for logits of shape \(2, 3\)"):
        train(tmp_path, criterion=criterion)


class WeightedTrainer(Trainer):
    """Take the weights of tokens out of the inputs, as the documentation says."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels, weight = inputs.pop("labels"), inputs.pop("token_weight")
        outputs = model(**inputs)
        loss = self.compute_loss_func(outputs, labels, num_items_in_batch, weight)
        return (loss, outputs) if return_outputs else loss


@pytest.mark.parametrize("kind", ["token classification", "causal language model", "sequence classification"])
def test_weights_of_tokens_follow_the_labels(kind, tmp_path):
    loss = TrainerLoss(CyclicalFocalLoss(reduction="sum", **PLAIN))
    data, seen = samples(kind), []
    for sample in data:
        sample["token_weight"] = torch.rand(sample["labels"].shape, dtype=torch.float64)
    arguments = TrainingArguments(
        str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, max_steps=1, remove_unused_columns=False
    )
    trainer = WeightedTrainer(build(kind), arguments, train_dataset=data, compute_loss_func=loss, callbacks=[loss])
    trainer.train()
    batch = trainer.data_collator(data)
    logits = trainer.model.train()(**{k: v for k, v in batch.items() if k not in ("labels", "token_weight")}).logits
    labels, weight = batch["labels"], batch["token_weight"]
    if kind.startswith("causal"):  # a token's logits predict the next one
        logits, labels, weight = logits[:, :-1], labels[:, 1:], weight[:, 1:]
    for row, label, factor in zip(
        logits.reshape(-1, logits.shape[-1]), labels.flatten(), weight.flatten(), strict=True
    ):
        if label != -100:
            seen.append(-factor * (row[label] - row.exp().sum().log()))
    ours = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=7)
    torch.testing.assert_close(ours, sum(seen) / 7)
    by_sample = torch.rand(len(data), dtype=torch.float64)
    batch["token_weight"] = by_sample
    once = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=7)
    wide = by_sample.view(-1, *[1] * (batch["labels"].dim() - 1)).expand(batch["labels"].shape)
    batch["token_weight"] = wide
    torch.testing.assert_close(trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=7), once)
    batch["token_weight"] = torch.ones(3, 2)
    with pytest.raises(ValueError, match=r"sample_weight has shape \(3, 2\); for labels of shape"):
        trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=7)


class Watch(TrainerCallback):
    """Gradients before every optimiser step, and eta in every batch."""

    def __init__(self, criterion):
        self.gradients, self.etas = [], []
        criterion.register_forward_pre_hook(lambda *_: self.etas.append(criterion.eta.item()))

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))


def train(folder, kind="sequence classification", resume=None, criterion=None, callbacks=(), **arguments):
    criterion = criterion or CyclicalFocalLoss(reduction="sum", label_smoothing=0.1)
    loss, watch = TrainerLoss(criterion), Watch(criterion)
    arguments = {
        "per_device_train_batch_size": 2,
        "max_steps": 5,
        "save_strategy": "no",
        "learning_rate": 0.1,
    } | arguments
    trainer = Trainer(
        build(kind),
        TrainingArguments(str(folder), use_cpu=True, report_to="none", disable_tqdm=True, **arguments),
        train_dataset=samples(kind),
        eval_dataset=samples(kind)[:4],
        compute_loss_func=loss,
        callbacks=[loss, watch, *callbacks],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, watch


def etas(total, repeat=1):
    return pytest.approx([cyclical_eta(step / (total - 1)) for step in range(total) for _ in range(repeat)], abs=1e-6)


@pytest.mark.parametrize("kind", MODELS)
def test_with_all_gammas_zero_it_is_the_models_own_loss(kind, tmp_path):
    trainer, _ = train(tmp_path, kind, criterion=CyclicalFocalLoss(reduction="sum", **PLAIN), max_steps=1)
    batch = trainer.data_collator(samples(kind)[:5])
    model = trainer.model.train()
    theirs = model(**batch).loss
    ours = trainer.compute_loss(model, dict(batch))
    torch.testing.assert_close(ours, theirs, check_dtype=False)  # the host computes some in single precision


@pytest.mark.parametrize("kind", MODELS)
def test_accumulated_gradients_are_those_of_one_big_batch(kind, tmp_path):
    big = train(tmp_path, kind, per_device_train_batch_size=8)[1]
    small = train(tmp_path, kind, per_device_train_batch_size=2, gradient_accumulation_steps=4)[1]
    assert len(big.gradients) == len(small.gradients) == 5
    for a, b in zip(big.gradients, small.gradients, strict=True):
        assert a.abs().max() > 1e-3
        assert (a - b).abs().max() < 1e-6


def test_accumulation_does_not_double_the_clock(tmp_path):
    trainer, watch = train(tmp_path, max_steps=6, gradient_accumulation_steps=2)
    assert watch.etas == etas(6, repeat=2)
    assert trainer.compute_loss_func.criterion.progress == 1


def test_eta_is_logged(tmp_path):
    seen = []
    reporter = type("Reporter", (TrainerCallback,), {"on_log": lambda *_, logs, **__: seen.append(logs.get("eta"))})()
    trainer, watch = train(tmp_path, max_steps=6, logging_steps=1, callbacks=[reporter])
    history = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["eta"] for row in history] == seen[: len(history)] == watch.etas
    assert "eta" not in trainer.state.log_history[-1]  # the summary of the training


def test_epochs_with_a_window_cut_short(tmp_path):
    _, watch = train(tmp_path, max_steps=-1, num_train_epochs=2, gradient_accumulation_steps=4)
    steps = [cyclical_eta(step / 5) for step in range(6)]  # ten batches per epoch: 4 + 4 + 2
    assert watch.etas == pytest.approx([steps[e * 3 + b // 4] for e in range(2) for b in range(10)], abs=1e-6)


def test_resume_continues_it(tmp_path):
    settings = {"max_steps": 6, "gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 2}
    whole, watch = train(tmp_path, **settings)
    resumed, rest = train(tmp_path / "again", resume=str(tmp_path / "checkpoint-2"), **settings)
    assert rest.etas == watch.etas[4:]
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_evaluation_is_plain_cross_entropy_and_moves_nothing(tmp_path):
    trainer, _ = train(tmp_path, criterion=CyclicalFocalLoss(reduction="sum"), eval_strategy="steps", eval_steps=1)
    assert trainer.compute_loss_func.criterion.progress == 1
    batch = trainer.data_collator(samples("sequence classification")[:4])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.model.eval()(**batch).loss.item(), rel=1e-5)


def test_multi_label_classification(tmp_path):
    model = BertForSequenceClassification(BertConfig(**BERT, problem_type="multi_label_classification"))
    data = samples("sequence classification")
    for sample in data:
        sample["labels"] = nn.functional.one_hot(sample["labels"], LABELS).float()
    loss = TrainerLoss(BinaryCyclicalFocalLoss(reduction="sum", **PLAIN))
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, max_steps=4)
    trainer = Trainer(model, arguments, train_dataset=data, compute_loss_func=loss, callbacks=[loss])
    trainer.train()
    batch = trainer.data_collator(data)
    ours = trainer.compute_loss(model.train(), dict(batch), num_items_in_batch=batch["labels"].numel())
    assert loss.criterion.progress == 1
    theirs = nn.functional.binary_cross_entropy_with_logits(logits_of(model, batch), batch["labels"])
    torch.testing.assert_close(ours, theirs)


def logits_of(model, batch):
    return model(input_ids=batch["input_ids"]).logits


def test_one_count_per_device_as_under_data_parallel(tmp_path):
    trainer, _ = train(tmp_path, max_steps=1)
    batch = trainer.data_collator(samples("sequence classification")[:4])
    loss, logits, devices = trainer.compute_loss_func, logits_of(trainer.model, batch), 3
    single = loss({"logits": logits}, batch["labels"], torch.tensor(4))
    repeated = loss({"logits": logits}, batch["labels"], torch.tensor([4]).expand(devices, -1))
    torch.testing.assert_close(repeated * devices, single)  # the Trainer multiplies by the devices


def test_half_of_it_is_refused(tmp_path):
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, max_steps=1)
    kind = "sequence classification"
    loss = TrainerLoss(CyclicalFocalLoss(reduction="sum"))
    trainer = Trainer(build(kind), arguments, train_dataset=samples(kind), callbacks=[loss])
    with pytest.raises(RuntimeError, match="compute_loss_func=loss"):
        trainer.train()
    loss = TrainerLoss(CyclicalFocalLoss(reduction="sum"))
    trainer = Trainer(build(kind), arguments, train_dataset=samples(kind), compute_loss_func=loss)
    with pytest.raises(RuntimeError, match=r"callbacks=\[loss\]"):
        trainer.train()
    trainer.add_callback(loss)
    trainer.train()


def test_half_of_it_the_second_time_is_refused(tmp_path):
    trainer, _ = train(tmp_path)
    loss, data = trainer.compute_loss_func, trainer.train_dataset
    weights = [weight.clone() for weight in trainer.model.parameters()]
    trainer.compute_loss(trainer.model.train(), trainer.data_collator(data[:2]))  # to look at it is right
    again = Trainer(trainer.model, trainer.args, train_dataset=data, compute_loss_func=loss)
    with pytest.raises(RuntimeError, match="progress of this loss is never set"):
        again.train()
    for old, new in zip(weights, trainer.model.parameters(), strict=True):
        torch.testing.assert_close(new, old)
    assert again.evaluate(data[:4])["eval_loss"] > 0
    again = Trainer(build("sequence classification"), trainer.args, train_dataset=data, callbacks=[loss])
    with pytest.raises(RuntimeError, match="trains with another loss"):
        again.train()


REFUSED = {
    'must be "sum"': {"reduction": "mean"},
    "has total_steps=3": {"reduction": "sum", "total_steps": 3},
    "ignore_index is 0": {"reduction": "sum", "ignore_index": 0},
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_criterion_that_does_not_fit_is_refused(message):
    with pytest.raises(ValueError, match=message):
        TrainerLoss(CyclicalFocalLoss(**REFUSED[message]))


SEGFORMER = {"num_labels": LABELS, "depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8}
SEGFORMER |= {"hidden_sizes": [8] * 4}
WAV2VEC2 = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
WAV2VEC2 |= {"conv_dim": (8, 8), "conv_stride": (5, 5), "conv_kernel": (10, 5), "num_feat_extract_layers": 2}
WAV2VEC2 |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "vocab_size": WORDS}
BART = {"vocab_size": WORDS, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
BART |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "max_position_embeddings": 16}
IMAGE = {"pixel_values": torch.zeros(3, 32, 32), "labels": torch.zeros(32, 32, dtype=torch.int64)}
SOUND = {"input_values": torch.zeros(400), "labels": torch.ones(LENGTH, dtype=torch.int64)}
TEXT = {"input_ids": torch.ones(LENGTH, dtype=torch.int64), "labels": torch.ones(LENGTH, dtype=torch.int64)}
MISFITS = {
    "segmentation": (lambda: SegformerForSemanticSegmentation(SegformerConfig(**SEGFORMER)), IMAGE),
    "ctc": (lambda: Wav2Vec2ForCTC(Wav2Vec2Config(**WAV2VEC2)), SOUND),
    "questions": (lambda: BertForQuestionAnswering(BertConfig(**BERT)), TEXT),
    "pretraining": (lambda: BertForPreTraining(BertConfig(**BERT)), TEXT),
    "t5": (lambda: T5ForConditionalGeneration(T5Config(**T5)), TEXT),
    "bart": (lambda: BartForConditionalGeneration(BartConfig(**BART)), TEXT),
}


def fit_misfit(kind, folder, collator=None, **options):
    model, sample = MISFITS[kind][0](), MISFITS[kind][1]
    loss = TrainerLoss(CyclicalFocalLoss(reduction="sum", **PLAIN), **options)
    arguments = TrainingArguments(str(folder), use_cpu=True, report_to="none", disable_tqdm=True, max_steps=1)
    data = {"train_dataset": [sample] * 8, "data_collator": collator}
    trainer = Trainer(model, arguments, compute_loss_func=loss, callbacks=[loss], **data)
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "segmentation",
            {},
            "SegformerForSemanticSegmentation trains with a loss of another kind|semantic segmentation",
        ),
        ("segmentation", {"shift_labels": False}, "semantic segmentation, classes in dimension 1"),
        ("ctc", {}, "Wav2Vec2ForCTC trains with a loss of another kind|aligns labels"),
        ("ctc", {"shift_labels": False}, r"class indices of shape \(8, 15\), one per row .* aligns labels"),
        ("questions", {}, "BertForQuestionAnswering trains with a loss of another kind"),
        ("pretraining", {}, "BertForPreTraining returns prediction_logits, seq_relationship_logits, but no logits"),
        ("t5", {}, "T5ForConditionalGeneration gets no decoder_input_ids.*DataCollatorForSeq2Seq"),
        ("bart", {}, "BartForConditionalGeneration gets no decoder_input_ids.*DataCollatorForSeq2Seq"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_by_name(kind, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        fit_misfit(kind, tmp_path, **options)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_decoder_inputs_made_of_the_labels_are_accepted(kind, tmp_path):
    """Inputs of DataCollatorForSeq2Seq pass, and the check leaves no hook on the model."""
    from transformers import default_data_collator

    def collate(rows):
        batch = default_data_collator(rows)
        return batch | {"decoder_input_ids": trainer_model.prepare_decoder_input_ids_from_labels(batch["labels"])}

    trainer_model = MISFITS[kind][0]()
    trainer = fit_misfit(kind, tmp_path, collate)
    batch = collate([MISFITS[kind][1]] * 3)
    model = trainer.model.eval()
    with torch.no_grad():
        theirs = model(**batch).loss
        torch.testing.assert_close(trainer.compute_loss(model, dict(batch)), theirs)
        model(input_ids=batch["input_ids"], labels=batch["labels"])
    assert not model._forward_pre_hooks


def test_labels_of_another_shape_and_as_many_are_refused(tmp_path):
    loss = train(tmp_path, max_steps=1)[0].compute_loss_func
    with pytest.raises(ValueError, match=r"must be class indices of shape \(2, 3\)"):
        loss({"logits": torch.zeros(2, 3, 4)}, torch.zeros(3, 2, dtype=torch.int64))


def test_label_smoothing_given_in_the_wrong_place_is_refused(tmp_path):
    with pytest.raises(ValueError, match="label_smoothing_factor"):
        train(tmp_path, label_smoothing_factor=0.1)


def test_labels_that_do_not_fit_are_refused(tmp_path):
    loss = train(tmp_path, max_steps=1)[0].compute_loss_func
    with pytest.raises(ValueError, match="labels is None"):
        loss({"logits": torch.zeros(2, 3)}, None)
    with pytest.raises(ValueError, match=r"it must be class indices of shape \(2,\)"):
        loss({"logits": torch.zeros(2, 3)}, torch.zeros(2, 3))


def test_an_unknown_model_needs_shift_labels(tmp_path):
    class Tagger(nn.Module):
        def forward(self, input_ids, labels=None):
            return {"logits": nn.functional.one_hot(input_ids, WORDS).float().requires_grad_()}

    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    batch = torch.arange(1, 5).view(1, 4)
    values = {}
    for shift in (None, True, False):
        loss = TrainerLoss(CyclicalFocalLoss(reduction="sum", **PLAIN), shift_labels=shift)
        trainer = Trainer(Tagger(), arguments, compute_loss_func=loss, callbacks=[loss])
        if shift is None:
            with pytest.raises(ValueError, match="shift_labels is None"):
                trainer.compute_loss(trainer.model, {"input_ids": batch, "labels": batch})
        else:
            values[shift] = trainer.compute_loss(trainer.model, {"input_ids": batch, "labels": batch}).item()
    right, wrong = math.log(math.e + WORDS - 1) - 1, math.log(math.e + WORDS - 1)
    assert values == pytest.approx({False: right, True: wrong})
