"""Text encoders that are not transformers' own: the reference's numbers, keys, configs and files."""

from __future__ import annotations

import json
import pickle

import pytest
import torch

import langevin
from tests.prompts.readers_parts import bert_sizes, random, xlm_r_sizes

IDS = torch.randint(5, 90, (2, 12), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * 12, [1] * 5 + [0] * 7])


def theirs_of(name):
    from diffusers.pipelines.deprecated.alt_diffusion import modeling_roberta_series
    from diffusers.pipelines.latent_diffusion import pipeline_latent_diffusion

    return getattr(pipeline_latent_diffusion if name.startswith("LDM") else modeling_roberta_series, name)


BERT = ("LDMBertModel", "LDMBertConfig")
ROBERTA = ("RobertaSeriesModelWithTransformation", "RobertaSeriesConfig")
CASES = [
    (BERT, bert_sizes()),
    (BERT, bert_sizes(activation_function="relu", encoder_layers=1, head_dim=7, scale_embedding=True)),
    (BERT, bert_sizes(dropout=0.3, attention_dropout=0.1, activation_dropout=0.2, encoder_layerdrop=0.5)),
    (ROBERTA, xlm_r_sizes()),
    (ROBERTA, xlm_r_sizes(has_pre_transformation=True, num_hidden_layers=2)),
    (ROBERTA, xlm_r_sizes(has_pre_transformation=True, num_hidden_layers=1, hidden_act="relu", project_dim=30)),
]
cases = pytest.mark.parametrize(("names", "sizes"), CASES)


def build(kinds, sizes):
    model, config = kinds
    return random(model(config(**sizes)))


@pytest.fixture
def pair(names, sizes):
    """The reference's model and ours with its weights."""
    theirs = build([theirs_of(name) for name in names], sizes)
    ours = build([getattr(langevin, name) for name in names], sizes)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@cases
@pytest.mark.parametrize("mask", [None, MASK])
def test_numbers_are_the_reference_ones(pair, mask):
    with torch.no_grad():
        theirs, ours = (model(IDS, attention_mask=mask) for model in pair)
        assert set(theirs) - {"hidden_states"} == set(ours)  # theirs gives those unasked where it has them
        for name, value in ours.items():
            torch.testing.assert_close(theirs[name], value, atol=1e-5, rtol=1e-5)
        for _ in range(2):
            theirs, ours = (model(IDS, attention_mask=mask, output_hidden_states=True) for model in pair)
            torch.testing.assert_close(theirs[0], ours[0], atol=1e-5, rtol=1e-5)
            for a, b in zip(theirs.hidden_states, ours.hidden_states, strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@cases
def test_what_is_saved_on_one_side_loads_on_the_other(pair, names, tmp_path):
    theirs, ours = pair
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    configs = [json.loads((tmp_path / side / "config.json").read_text()) for side in ("theirs", "ours")]
    assert configs[0] == configs[1]
    from_theirs = getattr(langevin, names[0]).from_pretrained(tmp_path / "theirs")
    from_ours = theirs_of(names[0]).from_pretrained(tmp_path / "ours")
    for model in (from_theirs, from_ours):
        state = model.state_dict()
        assert state.keys() == theirs.state_dict().keys()
        assert all(torch.equal(value, state[name]) for name, value in theirs.state_dict().items())
    assert not from_theirs.training


@cases
def test_the_model_is_the_same_after_it_was_used(pair):
    model = pair[1]
    before = pickle.dumps(model)
    with torch.no_grad():
        model(IDS, attention_mask=MASK)
    assert pickle.dumps(model) == before


@cases
def test_gradients_reach_every_weight_that_is_used(pair):
    model = pair[1].train()
    model(IDS, attention_mask=MASK)[0].square().sum().backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None]
    unused = ("to_logits", "pooler")
    if getattr(model, "has_pre_transformation", False):
        last = f"encoder.layer.{len(model.roberta.encoder.layer) - 1}."
        unused += ("transformation.", last)
    assert not [name for name in idle if not any(part in name for part in unused)]


@cases
def test_embeddings_may_be_given_and_tuples_asked_for(pair):
    model = pair[1]
    with torch.no_grad():
        expected = model(IDS, attention_mask=MASK)
        embeds = model.get_input_embeddings()(IDS)
        same = model(inputs_embeds=embeds, attention_mask=MASK, return_dict=False)
    assert isinstance(same, tuple)
    torch.testing.assert_close(same[0], expected[0])


def test_attention_of_bert_may_be_looked_at():
    theirs, ours = (
        build(kinds, bert_sizes())
        for kinds in ([theirs_of(n) for n in BERT], [langevin.LDMBertModel, langevin.LDMBertConfig])
    )
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        seen = [model(IDS, attention_mask=MASK, output_attentions=True).attentions for model in (theirs, ours)]
    for a, b in zip(*seen, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(), "exactly one of input_ids and inputs_embeds"),
        (dict(input_ids=IDS, inputs_embeds=torch.zeros(2, 12, 24)), "exactly one"),
        (dict(input_ids=torch.zeros(1, 78, dtype=torch.long)), "78 tokens given; this encoder has positions for 77"),
    ],
)
def test_what_bert_cannot_read_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        build([langevin.LDMBertModel, langevin.LDMBertConfig], bert_sizes())(**given)


def test_xlm_r_without_layers_is_refused_where_the_state_before_its_last_is_wanted():
    model = build(
        [langevin.RobertaSeriesModelWithTransformation, langevin.RobertaSeriesConfig],
        xlm_r_sizes(has_pre_transformation=True, num_hidden_layers=0),
    )
    with pytest.raises(ValueError, match="leave at least one layer in"):
        model(IDS)


def test_positions_may_be_chosen():
    theirs = build([theirs_of(n) for n in BERT], bert_sizes())
    ours = build([langevin.LDMBertModel, langevin.LDMBertConfig], bert_sizes())
    ours.load_state_dict(theirs.state_dict())
    backwards = torch.arange(11, -1, -1)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            ours(IDS, position_ids=backwards)[0], theirs(IDS, position_ids=backwards)[0], atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("name", [BERT[0], ROBERTA[0]])
def test_each_says_by_which_name_checkpoints_know_its_library(name):
    library = "latent_diffusion" if name.startswith("LDM") else "alt_diffusion"
    assert getattr(langevin, name).library_name == library
