import pytest
import torch
from small_tokenizers import MODELS, byte_level

from memreason_hf.analysis.attention_maps import read_attention
from memreason_hf.evaluation.mode import evaluation_mode
from memreason_hf.evaluation.solutions.generation import continue_greedily
from memreason_hf.evaluation.solutions.judges import LanguageModelJudge
from memreason_hf.steps import Step, StepScheme
from memreason_hf.steps.tokenization import extend_tokenizer


@pytest.fixture
def model():
    return torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(4, 4), torch.nn.Dropout(0.5)).train()


def test_neither_dropout_nor_gradients_inside(model):
    inputs = torch.ones(1, 4)
    assert not torch.equal(model(inputs), model(inputs)) and model(inputs).requires_grad
    with evaluation_mode(model):
        assert torch.equal(model(inputs), model(inputs)) and not model(inputs).requires_grad
    assert model(inputs).requires_grad


def test_every_module_gets_its_own_mode_back(model):
    model[2].eval()
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, True, False]
    with pytest.raises(KeyError), evaluation_mode(model):
        raise KeyError
    assert [module.training for module in model.modules()] == [True, True, True, False]


def use_judge(model, tokenizer):
    judge = LanguageModelJudge(model, tokenizer, answers=("the", "a"))
    judge(Step("memory", "the reason"), [Step("memory", "the step")])


def use_attention(model, tokenizer):
    read_attention(model, [3, 4, 5])


def use_generation(model, tokenizer):
    list(continue_greedily(model, tokenizer, {0: [3, 4], 1: [5]}, batch_size=1, max_new_tokens=2))


@pytest.mark.parametrize("use", [use_judge, use_attention, use_generation])
def test_every_caller_keeps_the_modes_of_the_modules(use):
    """A module in evaluation mode, inside a model in training mode, stays in evaluation mode."""
    tokenizer = byte_level()
    model = MODELS["llama"](len(tokenizer))
    extend_tokenizer(tokenizer, StepScheme(1, 1), model)
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    assert len(set(modes)) == 2
    seen = []
    model.model.register_forward_pre_hook(lambda module, _: seen.append(module.training or torch.is_grad_enabled()))
    use(model, tokenizer)
    assert seen and not any(seen)
    assert [module.training for module in model.modules()] == modes


def test_the_mode_is_back_between_batches():
    tokenizer = byte_level()
    model = MODELS["llama"](len(tokenizer))
    extend_tokenizer(tokenizer, StepScheme(1, 1), model)
    model.train()
    batches = continue_greedily(model, tokenizer, {0: [3, 4], 1: [5]}, batch_size=1, max_new_tokens=2)
    next(batches)
    assert model.training and torch.is_grad_enabled()
