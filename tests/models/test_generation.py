"""Captions and answers: what their words score is what the model says word by word, and the maps are of these scores."""

import pytest
import torch

import glowmap
from glowmap.errors import GlowmapError, TargetError
from glowmap.models.transformers.words import as_sentence
from glowmap.outputs import ModelOutput, OutputReaders
from glowmap.targets import PerImage, Predicted, Probability, Text, TokenLogProbability, TokenSpan
from tiny_models import generative as ours

SENTENCE = "a dog on the sofa"
ASKED = "what colour is the car ?"


def spell(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def begun(name):
    """Give (module, what is loaded, pictures, what stands before the answer by hand, the keyword that grows, the prompt)."""
    build, words, size, before, grows, prompt = {
        "blip": (ours.blip, ours.bert(), (64, 64), {"input_ids": [ours.DEC]}, "input_ids", None),
        "git": (ours.git, ours.bert(), (64, 64), {"input_ids": [ours.CLS]}, "input_ids", None),
        "gpt2": (
            ours.encoder_decoder,
            ours.tokenizer(bos_token="<s>", eos_token="</s>"),
            (64, 96),
            {"decoder_input_ids": [ours.BOS]},
            "decoder_input_ids",
            None,
        ),
        "trocr": (
            ours.trocr,
            ours.tokenizer("<s> $A </s>", bos_token="<s>", eos_token="</s>"),
            (64, 64),
            {"decoder_input_ids": [ours.EOS]},
            "decoder_input_ids",
            None,
        ),
        "blip2": (
            ours.blip2,
            ours.llama(),
            (64, 64),
            {"input_ids": [*[ours.IMAGE] * 6, ours.BOS]},
            "input_ids",
            None,
        ),
        "blip2 t5": (
            ours.blip2_t5,
            ours.tokenizer("$A </s>", eos_token="</s>"),
            (64, 64),
            {
                "input_ids": [*[ours.IMAGE] * 6, *spell(ours.bert(), ASKED), ours.EOS],
                "decoder_input_ids": [ours.PAD],
            },
            "decoder_input_ids",
            ASKED,
        ),
        "florence": (
            ours.florence,
            ours.tokenizer("<s> $A </s>", bos_token="<s>", eos_token="</s>"),
            (64, 64),
            {
                "input_ids": [ours.BOS, *[ours.IMAGE] * 65, *spell(ours.bert(), ASKED), ours.EOS],
                "decoder_input_ids": [ours.EOS, ours.BOS],
            },
            "decoder_input_ids",
            ASKED,
        ),
        "answers": (
            ours.blip_answers,
            ours.bert(),
            (64, 64),
            {"input_ids": [ours.CLS, *spell(ours.bert(), ASKED), ours.SEP], "decoder_input_ids": [ours.DEC]},
            "decoder_input_ids",
            ASKED,
        ),
    }[name]
    module = build()
    return module, ours.loaded(module, words), ours.pictures(1, *size), before, grows, prompt


every_writer = pytest.mark.parametrize(
    "name", ["blip", "git", "gpt2", "trocr", "blip2", "blip2 t5", "florence", "answers"]
)


def said_next(module, images, given):
    """Give the logits of the next word after all that is given, in a call of the module alone."""
    kept = []
    keywords = {name: torch.tensor([tokens]) for name, tokens in given.items()}
    with torch.no_grad():
        if hasattr(module, "text_encoder"):  # BLIP's answers are heard inside
            hook = module.text_decoder.register_forward_hook(lambda _module, _given, output: kept.append(output.logits))
            module(pixel_values=images, **keywords)
            hook.remove()
        else:
            kept.append(module(pixel_values=images, **keywords).logits)
    return kept[-1][0, -1]


def by_hand(module, images, before, grows, tokens):
    """Ask word by word, with the words before it given and none behind."""
    scores = []
    for at, token in enumerate(tokens):
        logits = said_next(module, images, {**before, grows: [*before[grows], *tokens[:at]]})
        scores.append(float(logits.log_softmax(-1)[token]))
    return scores


@every_writer
def test_a_sentence_scores_what_the_model_gives_word_by_word(name):
    module, model, images, before, grows, prompt = begun(name)
    found = glowmap.explain(model, images, target=Text(SENTENCE, prompt=prompt), method="input_gradient")
    expected = by_hand(module, images, before, grows, spell(model.text_interface.tokenizer, SENTENCE))
    assert len(expected) == 5
    assert float(found.scores) == pytest.approx(sum(expected), abs=1e-4)
    assert found.target_names == (repr(SENTENCE) if prompt is None else f"{SENTENCE!r} to {prompt!r}",)


def test_a_caption_scores_minus_the_models_own_loss():
    module, model, images, *_ = begun("blip")
    tokens = torch.tensor([[ours.DEC, *spell(ours.bert(), SENTENCE)]])
    with torch.no_grad():  # which is without label smoothing here
        module.text_decoder.label_smoothing = 0.0
        logits = module(pixel_values=images, input_ids=tokens).logits
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:], reduction="sum")
    found = glowmap.explain(model, images, target=Text(SENTENCE), method="input_gradient")
    assert float(found.scores) == pytest.approx(-float(loss), abs=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "trocr"])
def test_a_decoders_sentence_scores_minus_the_loss_of_its_labels(name):
    module, model, images, *_ = begun(name)
    tokens = torch.tensor([spell(model.text_interface.tokenizer, SENTENCE)])
    with torch.no_grad():
        loss = module(pixel_values=images, labels=tokens).loss * tokens.shape[1]
    found = glowmap.explain(model, images, target=Text(SENTENCE), method="input_gradient")
    assert float(found.scores) == pytest.approx(-float(loss), abs=1e-4)


def generated(module, images, before, name):
    """Let the model write by its own means, as its documentation has it."""
    row = {key: torch.tensor([tokens]) for key, tokens in before.items()}
    if name == "blip":
        row = {}
    if name in ("blip2 t5", "answers"):
        row.pop("decoder_input_ids")
    if name in ("gpt2", "trocr"):
        row = {}
    return module.generate(pixel_values=images, do_sample=False, num_beams=1, max_new_tokens=24, **row)[0].tolist()


@every_writer
def test_what_the_model_says_itself_is_what_it_generates(name):
    module, model, images, before, grows, prompt = begun(name)
    found = glowmap.explain(model, images, target=Text(prompt=prompt), method="input_gradient")
    tokenizer = model.text_interface.tokenizer
    ends = {ours.EOS, ours.PAD, ours.IMAGE, *([ours.SEP] if tokenizer.sep_token else [])}
    own = generated(module, images, before, name)
    own = own[len(before[grows]) :] if own[: len(before[grows])] == before[grows] else own
    own = own[: next((at for at, token in enumerate(own) if token in ends), len(own))]
    scored = [token for token in own if token not in ours.signs(tokenizer)]
    sentence = tokenizer.decode(scored)
    assert scored
    assert found.target_names[0][1:-1].startswith(sentence)
    if len(own) < 24:  # it came to an end
        scores = by_hand(module, images, before, grows, own)
        expected = sum(s for s, token in zip(scores, own, strict=True) if token in scored)
        assert float(found.scores) == pytest.approx(expected, abs=1e-4)


def test_without_a_question_the_models_own_words_are_explained():
    _, model, images, *_ = begun("gpt2")
    asked = glowmap.explain(model, images, target=Text())
    plain = glowmap.explain(model, images)
    assert plain.target_names == asked.target_names
    torch.testing.assert_close(plain.raw, asked.raw)
    assert plain.raw.any()
    assert plain.prediction is None


def test_words_add_up_to_the_sentence_in_scores_and_in_maps():
    _, model, images, *_ = begun("blip")
    sentence, *words = glowmap.explain(
        model, images, target=Text("a dogs on the sofa", each_word=True), method="hires_cam"
    )
    assert [word.target_names[0] for word in words] == [
        f"{word!r} in 'a dogs on the sofa'" for word in ("a", "dogs", "on", "the", "sofa")
    ]
    torch.testing.assert_close(sum(word.scores for word in words), sentence.scores)
    torch.testing.assert_close(sum(word.raw for word in words), sentence.raw, rtol=1e-4, atol=1e-5)
    assert {one.layer for one in (sentence, *words)} == {sentence.layer}
    assert sentence.raw.abs().max() > 1e-2


def test_all_words_share_one_forward_pass_once_the_layer_is_known():
    module, model, images, *_ = begun("blip")
    question = Text(SENTENCE, each_word=True)
    glowmap.explain(model, images, target=question)
    runs = []
    hook = module.register_forward_hook(lambda *_: runs.append(1))
    found = glowmap.explain(model, images, target=question)
    hook.remove()
    assert len(found) == 6
    assert len(runs) == 1


def test_a_word_is_asked_by_place_or_as_it_is_written():
    _, model, images, *_ = begun("blip")
    _, *words = glowmap.explain(model, images, target=Text("a dogs on a sofa .", each_word=True))
    by_place, by_name, loudly = glowmap.explain(
        model, images, target=[Text("a dogs on a sofa .", word=word) for word in (1, "dogs", "DOGS")]
    )
    assert len(words) == 5  # a full stop is no word
    for one in (by_place, by_name, loudly):
        assert one.target_names == ("'dogs' in 'a dogs on a sofa .'",)
        torch.testing.assert_close(one.raw, words[1].raw)
        torch.testing.assert_close(one.scores, words[1].scores)


def test_a_word_of_two_tokens_scores_both():
    module, model, images, before, grows, _ = begun("blip")
    found = glowmap.explain(model, images, target=Text("a dogs on", word="dogs"))
    tokens = spell(ours.bert(), "a dogs on")
    assert len(tokens) == 4
    assert float(found.scores) == pytest.approx(sum(by_hand(module, images, before, grows, tokens)[1:3]), abs=1e-4)


@every_writer
def test_the_map_is_gradient_times_activation_at_the_layer_found(name):
    module, model, images, before, grows, prompt = begun(name)
    found = glowmap.explain(model, images, target=Text(SENTENCE, prompt=prompt), method="hires_cam")
    layer = found.layer.partition("#")[0]
    kept, inside = [], []
    tokens = spell(model.text_interface.tokenizer, SENTENCE)
    keywords = {**before, grows: [*before[grows], *tokens]}
    hooks = [module.get_submodule(layer).register_forward_hook(lambda _m, _i, out: kept.append(out))]
    if name == "answers":
        hooks.append(module.text_decoder.register_forward_hook(lambda _m, _i, out: inside.append(out.logits)))
    leaf = images.clone().requires_grad_()
    out = module(pixel_values=leaf, **{key: torch.tensor([row]) for key, row in keywords.items()})
    for hook in hooks:
        hook.remove()
    logits = (inside[-1] if inside else out.logits)[0].log_softmax(-1)
    score = sum(logits[at - len(tokens) - 1, token] for at, token in enumerate(tokens))
    output = kept[0] if isinstance(kept[0], torch.Tensor) else kept[0].last_hidden_state
    (slope,) = torch.autograd.grad(score, output)
    rows, columns = found.raw.shape[1:]
    cam = (slope * output).sum(-1)[:, -rows * columns :].reshape(1, rows, columns)
    torch.testing.assert_close(found.raw, cam.detach(), rtol=1e-3, atol=1e-5)
    assert found.raw.abs().max() > 1e-3


@pytest.mark.parametrize("name", ["blip", "git", "gpt2", "blip2", "answers"])
def test_a_batch_is_explained_as_its_pictures_one_by_one(name):
    _, model, images, *_, prompt = begun(name)
    two = torch.cat([images, images.flip(-1) * 1.5])
    together = glowmap.explain(model, two, target=Text(SENTENCE, prompt=prompt))
    for at in range(2):
        one = glowmap.explain(model, two[at : at + 1], target=Text(SENTENCE, prompt=prompt), layer=together.layer)
        torch.testing.assert_close(together.raw[at], one.raw[0], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(together.scores[at], one.scores[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together.raw[0], together.raw[1])


@pytest.mark.parametrize("name", ["blip", "gpt2", "answers"])
def test_each_picture_of_a_batch_has_its_own_words(name):
    _, model, images, *_, prompt = begun(name)
    two = ours.pictures(2, *images.shape[2:])
    together = glowmap.explain(model, two, target=Text(prompt=prompt))
    assert together.target_names[0] != together.target_names[1]
    for at in range(2):
        one = glowmap.explain(model, two[at : at + 1], target=Text(prompt=prompt), layer=together.layer)
        assert one.target_names[0] == together.target_names[at]
        torch.testing.assert_close(together.scores[at], one.scores[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together.raw[at], one.raw[0], rtol=1e-3, atol=1e-5)


def test_another_prompt_leads_to_another_score():
    module, model, images, before, grows, _ = begun("blip")
    plain, asked = glowmap.explain(model, images, target=[Text("a dog"), Text("a dog", prompt="on the sofa")])
    tokens = spell(ours.bert(), "a dog")
    longer = {grows: [*before[grows], *spell(ours.bert(), "on the sofa")]}
    assert float(plain.scores) == pytest.approx(sum(by_hand(module, images, before, grows, tokens)), abs=1e-4)
    assert float(asked.scores) == pytest.approx(sum(by_hand(module, images, longer, grows, tokens)), abs=1e-4)
    assert abs(float(plain.scores - asked.scores)) > 0.1


@pytest.mark.parametrize(
    "method", ["grad_cam", "layer_cam", "ablation_cam", "recipro_cam", "rise", "integrated_gradients"]
)
@pytest.mark.parametrize("name", ["gpt2", "answers"])
def test_methods_that_ask_again_run_on_words(name, method):
    _, model, images, *_, prompt = begun(name)
    parameters = {"rise": {"masks": 8}, "integrated_gradients": {"steps": 4}}.get(method, {})
    two = torch.cat([images, images.flip(-1)])
    with_parameters = glowmap.METHODS[method].with_parameters(**parameters)
    found = glowmap.explain(model, two, target=Text(SENTENCE, prompt=prompt), method=with_parameters)
    one = glowmap.explain(model, two[:1], target=Text(SENTENCE, prompt=prompt), method=with_parameters)
    torch.testing.assert_close(found.raw[:1], one.raw, rtol=1e-3, atol=1e-4)
    assert not any("copies of image" in caution for caution in found.cautions)
    assert found.raw.any()


def test_own_words_stay_the_same_when_the_picture_is_changed():
    _, model, images, *_ = begun("gpt2")
    two = torch.cat([images, images.flip(-1) * 1.5])
    with_parameters = glowmap.METHODS["occlusion"].with_parameters(window=32)
    together = glowmap.explain(model, two, method=with_parameters)
    for at in range(2):
        alone = glowmap.explain(model, two[at : at + 1], method=with_parameters)
        torch.testing.assert_close(together.raw[at], alone.raw[0], rtol=1e-3, atol=1e-4)


def test_a_question_is_answered_with_a_class():
    module, model = ours.vilt(), ours.loaded(ours.vilt(), ours.bert())
    images = ours.pictures()
    asked = ours.bert()(ASKED, return_tensors="pt")
    chosen, red, blue = glowmap.explain(
        model, images, target=[Text(prompt=ASKED), Text("red", prompt=ASKED), Text("blue", prompt=ASKED)]
    )
    with torch.no_grad():
        logits = module(input_ids=asked.input_ids, attention_mask=asked.attention_mask, pixel_values=images).logits[0]
    assert float(red.scores) == pytest.approx(float(logits[0]), abs=1e-4)
    assert float(blue.scores) == pytest.approx(float(logits[1]), abs=1e-4)
    assert chosen.target_names[0] == ["red", "blue", "two", "cat"][int(logits.argmax())]
    layer = "vilt.embeddings.patch_embeddings"
    red, blue = glowmap.explain(
        model, images, target=[Text("red", prompt=ASKED), Text("blue", prompt=ASKED)], layer=layer
    )
    assert not torch.allclose(red.raw, blue.raw)
    other = glowmap.explain(model, images, target=Text("red", prompt="what is on the sofa ?"))
    assert abs(float(other.scores - red.scores)) > 1e-3


@pytest.mark.parametrize(
    ("name", "target", "said"),
    [
        ("vilt", Text("red"), "give a prompt"),
        ("vilt", None, "give a prompt"),
        ("vilt", Text("rad", prompt=ASKED), "near names: red"),
        ("vilt", Text("red", prompt=ASKED, word=0), "writes no words"),
        ("vilt", Text("red", prompt=" ".join(["a"] * 40)), "has 16 positions; give a shorter one"),
        ("answers", Text("red"), "give a prompt"),
        ("answers", None, "give a prompt"),
        ("blip", Text("a dog", word="cog"), "there is no word 'cog' in 'a dog'; near names: dog"),
        ("blip", Text("a dog", word=2), "there is no word 2 in 'a dog', which has 2, from 0 on"),
        ("blip", Text("a dog on a sofa", word="a"), "occurs 2 times in 'a dog on a sofa'; give its number: 0 or 3"),
        ("blip", Text(" ".join(["dog"] * 40)), "too long for BlipForConditionalGeneration: 41 tokens"),
        ("blip", Text("a dog", against=("a cat",)), "the texts of 'against' are for models that compare"),
        ("blip", Text("[PAD]"), "has no words for"),
        ("blip2", Text("a <image> dog"), "has a place for a picture"),
        ("blip", Text("a zebra on the giraffe"), "BlipForConditionalGeneration does not know 'zebra', 'giraffe'"),
        ("blip", Text("a [UNK]"), "does not know '[UNK]'"),
        ("blip", Text("[UNK]"), "does not know '[UNK]'"),
        ("blip", Text("a dog", prompt="the zebra"), "does not know 'zebra'"),
        ("vilt", Text("red", prompt="what colour is the zebra ?"), "does not know 'zebra'"),
        ("blip", Text("a dog [SEP]"), "has '[SEP]' in it, which is a sign"),
        ("blip", 5, "has no classes: a class would read the logits of a word after words that are not given"),
        ("blip", [Text("a dog"), 5], "has no classes: a class would read"),
        ("blip", Probability(Predicted()), "has no classes: a class would read"),
        (
            "blip",
            lambda output: output.logits[:, -1, 5],
            "a callable would read the logits of a word after words that are not given",
        ),
        (
            "vilt",
            [Text("red", prompt=ASKED), Text("red", prompt="a dog ?"), "blue"],
            "a class does not say which pass",
        ),
        ("florence", Text("a dog"), "prompt='<CAPTION>'"),
        ("blip", PerImage([Text("a dog")]), None),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_sentence(name, target, said):
    build = {"vilt": ours.vilt, "answers": ours.blip_answers, "blip2": ours.blip2, "florence": ours.florence}
    words = ours.llama() if name in ("blip2", "florence") else ours.bert()
    model = ours.loaded(build.get(name, ours.blip)(), words)
    if said is None:
        assert glowmap.explain(model, ours.pictures(), target=target).target_names == ("'a dog'",)
        return
    with pytest.raises(TargetError) as caught:
        glowmap.explain(model, ours.pictures(), target=target)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "target", "option"),
    [
        ("vilt", Text("red"), "give a prompt: --text 'red' --prompt 'what colour is the car?'"),
        ("answers", Text("red"), "give a prompt: --text 'red' --prompt 'what colour is the car?'"),
        ("florence", Text("a dog"), "give a prompt: --text '...' --prompt '<CAPTION>'"),
        ("vilt", Text("red", prompt=ASKED, word=0), "leave out --word, --words and --against"),
        ("blip", Text("a dog on a sofa", word="a"), "give its number: 0 or 3"),
        ("blip", Text("a dog", against=("a cat",)), "give each text as a target: a --text for each"),
        ("blip", 5, "give --text 'a dog'"),
    ],
)
def test_the_remedy_on_the_command_line_is_an_option(name, target, option):
    build = {"vilt": ours.vilt, "answers": ours.blip_answers, "florence": ours.florence}.get(name, ours.blip)
    model = ours.loaded(build(), ours.llama() if name == "florence" else ours.bert())
    with pytest.raises(TargetError) as caught:
        glowmap.explain(model, ours.pictures(), target=target)
    assert caught.value.on_command_line.endswith(f"; {option}")
    assert "targets." not in caught.value.on_command_line


def test_words_of_several_pictures_of_their_own_are_refused_one_by_one():
    _, model, images, *_ = begun("gpt2")
    with pytest.raises(TargetError, match="one by one, or give the text"):
        glowmap.explain(model, torch.cat([images, images.flip(-1) * 1.5]), target=Text(each_word=True))


def test_words_beside_the_pictures_leave_no_room_for_a_text():
    _, model, images, *_ = begun("blip")
    brought = {"pixel_values": images, "input_ids": torch.tensor([[ours.DEC, 8, 9]])}
    with pytest.raises(TargetError, match="contains a text already, so no other can be added"):
        glowmap.explain(model, brought, target=Text("a dog"))
    found = glowmap.explain(model, brought, target=9)
    with torch.no_grad():
        expected = ours.blip()(**brought).logits[0, -1, 9]
    assert float(found.scores) == pytest.approx(float(expected), abs=1e-4)


def test_a_text_without_a_processor_says_what_is_missing():
    with pytest.raises(GlowmapError, match=r"glowmap.load\(module, processor=...\)|pass a dict"):
        glowmap.explain(
            ours.blip(),
            {"pixel_values": ours.pictures(), "input_ids": torch.tensor([[ours.DEC, 8]])},
            target=Text("a dog"),
        )


def test_a_model_that_says_nothing_is_an_error():
    module = ours.lively(type(ours.encoder_decoder())(ours.encoder_decoder().config))
    with torch.no_grad():  # its first word is always the last
        module.decoder.lm_head.weight = torch.nn.Parameter(module.decoder.lm_head.weight.clone())
        module.decoder.lm_head.weight.zero_()
        module.decoder.lm_head.bias = torch.nn.Parameter(torch.zeros(ours.COUNT))
        module.decoder.lm_head.bias[ours.EOS] = 9.0
    model = ours.loaded(module, ours.tokenizer(bos_token="<s>", eos_token="</s>"))
    with pytest.raises(TargetError, match="writes an empty text for image 0; give a text"):
        glowmap.explain(model, ours.pictures(1, 64, 96))


def test_the_model_is_given_back_after_it_spoke():
    module, model, images, *_ = begun("answers")
    hooks = {name: len(part._forward_hooks) + len(part._forward_pre_hooks) for name, part in module.named_modules()}
    state = torch.get_rng_state()
    glowmap.explain(model, images, target=Text(prompt=ASKED))
    with pytest.raises(TargetError):
        glowmap.explain(model, images, target=Text("red", prompt=ASKED, word="blue"))
    after = {name: len(part._forward_hooks) + len(part._forward_pre_hooks) for name, part in module.named_modules()}
    assert after == hooks
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a dog, a cat.", ["a", "dog", "a", "cat"]),
        ("où est le café?", ["où", "est", "le", "café"]),
        ("the dog's well-known sofa", ["the", "dog's", "well-known", "sofa"]),
        ("一只狗", ["一", "只", "狗"]),
        ("2 dogs !", ["2", "dogs"]),
        ("कुत्ता घर में है", ["कुत्ता", "घर", "में", "है"]),
        ("สุนัข", ["สุนัข"]),
        ("مُدَرِّس هنا", ["مُدَرِّس", "هنا"]),
        ("cafe\u0301 noir", ["cafe\u0301", "noir"]),
        ("か\u3099く", ["か\u3099", "く"]),
        ("3.5 dogs cost 1,000. 2, 3", ["3.5", "dogs", "cost", "1,000", "2", "3"]),
        ("C++ and C#, not f#m", ["C++", "and", "C#", "not", "f", "m"]),
        ("❤️ dog", ["dog"]),
    ],
)
def test_words_are_what_a_person_would_call_words(text, words):
    tokenizer = ours.by_bytes()
    tokens = spell(tokenizer, text)
    assert len(tokens) == len(text.encode())  # each byte is a token
    sentence = as_sentence(tokenizer, tokens, text)
    assert [word for word, _ in sentence.words] == words
    for word, own in sentence.words:
        assert tokenizer.decode([tokens[at] for at in own]) == word


def test_a_token_of_two_words_makes_them_one():
    tokenizer = ours.by_bytes(merges=[("a", "Ġ"), ("aĠ", "d")])
    sentence = as_sentence(tokenizer, spell(tokenizer, "a dog is"), "a dog is")
    assert [word for word, _ in sentence.words] == ["a dog", "is"]


def test_the_end_of_a_sentence_is_not_scored_and_is_no_word():
    tokens = [ours.CLS, *spell(ours.bert(), "a dog"), ours.SEP]
    sentence = as_sentence(ours.bert(), tokens, None)
    assert (sentence.text, sentence.scored) == ("a dog", (1, 2))
    assert sentence.words == (("a", (1,)), ("dog", (2,)))


def read(logits):
    return ModelOutput(None, 1, OutputReaders(token_logits=lambda _: logits))


def test_log_probabilities_are_taken_in_float32():
    logits = torch.tensor([[[0.0, 12.0, 12.0], [3.0, 1.0, 0.0]]], dtype=torch.bfloat16)
    score = TokenLogProbability((TokenSpan("a b", (1, 0), (-2, -1)),)).score(read(logits))
    expected = torch.log_softmax(logits[0].double(), -1)
    assert score.dtype == torch.float32
    assert float(score) == pytest.approx(float(expected[0, 1] + expected[1, 0]), abs=1e-5)


def test_a_token_beyond_the_vocabulary_names_the_remedy():
    with pytest.raises(TargetError, match="the tokenizer or processor that belongs to this model"):
        TokenLogProbability((TokenSpan("a", (3,), (-1,)),)).score(read(torch.zeros(1, 1, 3)))


def test_a_picture_without_words_of_its_own_is_refused():
    words = TokenLogProbability((TokenSpan("a", (1,), (-1,)), TokenSpan("b", (0,), (-1,))))
    with pytest.raises(TargetError, match="there are words for 2 images, and the batch has 1"):
        words.score(read(torch.zeros(1, 1, 3)))


@pytest.mark.parametrize("method", ["hires_cam", "rise"])
def test_each_picture_may_be_asked_about_what_the_model_says_of_it(method):
    _, model, images, *_ = begun("gpt2")
    two = torch.cat([images, images.flip(-1) * 1.5])
    with_parameters = glowmap.METHODS["rise"].with_parameters(masks=8) if method == "rise" else method
    own = glowmap.explain(model, two, method=with_parameters)
    assert own.target_names[0] != own.target_names[1]
    for questions in ([None, None], [Text(), None]):
        found = glowmap.explain(model, two, target=PerImage(questions), method=with_parameters)
        assert found.target_names == own.target_names
        assert torch.equal(found.scores, own.scores)
        assert torch.equal(found.raw, own.raw)
    with pytest.raises(TargetError, match="'a dog' and the model's own text cannot be part of one target"):
        glowmap.explain(model, two, target=PerImage([Text("a dog"), None]), method=with_parameters)


def test_a_model_that_generates_a_dict_is_let_speak_all_the_same():
    module, model, images, *_ = begun("gpt2")
    plain = glowmap.explain(model, images).target_names
    module.generation_config.return_dict_in_generate = True
    try:
        assert glowmap.explain(model, images).target_names == plain
    finally:
        module.generation_config.return_dict_in_generate = False


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("word", 1.5, "word is its number from 0, or the word as it is written, not 1.5"),
        ("word", [1], r"not \[1\]; for several words give a list of targets"),
        ("word", True, "as it is written, not True"),
        ("word", " ", "word is empty; give the word"),
        ("against", None, "against is a sentence or a list of them, not NoneType"),
        ("against", 5, "against is a sentence or a list of them, not int"),
        ("each_word", 1, "each_word is True or False, not 1"),
    ],
)
def test_a_text_is_made_of_words_and_nothing_else(field, value, said):
    made = Text("a dog")
    object.__setattr__(made, field, value)  # past the tests' own check of types, which users do not have
    with pytest.raises(TargetError, match=said):
        made.__post_init__()


def test_one_word_and_each_word_are_not_asked_at_once():
    with pytest.raises(TargetError, match="the word 0 is one word, and each_word is all of them"):
        Text("a dog", word=0, each_word=True)


def test_places_that_a_model_writes_are_scored_and_are_words():
    module, _, images, before, grows, prompt = begun("florence")
    places = ["<loc_1>", "<loc_2>"]
    config = type(module.config)(**module.config.to_dict())
    config.text_config.vocab_size = ours.COUNT + 2
    larger = ours.lively(type(module)(config))
    larger.generation_config.forced_bos_token_id = ours.BOS
    tokenizer = ours.tokenizer("<s> $A </s>", extra=places, bos_token="<s>", eos_token="</s>")
    model = ours.loaded(larger, tokenizer)
    for text, tokens in (("car <loc_1>", (1,)), ("car <loc_2> <loc_1>", (2, 1)), ("car", ())):
        found = glowmap.explain(model, images, target=Text(text, prompt=prompt), method="input_gradient")
        answer = [*spell(tokenizer, "car"), *(ours.COUNT - 1 + place for place in tokens)]
        assert answer == spell(tokenizer, text)
        assert float(found.scores) == pytest.approx(sum(by_hand(larger, images, before, grows, answer)), abs=1e-4)
