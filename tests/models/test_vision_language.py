"""Language models with a picture among their words: they are given what their processors give, and maps lie as the picture."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import glowmap
from glowmap.errors import InputError, TargetError
from glowmap.models.transformers import images as image_layout
from glowmap.targets import Text
from tiny_models import generative as ours

ANSWER = "a dogs on the sofa"
PROMPT = "what is this ?"
QWEN = {"qwen2": (ours.qwen2, 2), "qwen25": (ours.qwen25, 2), "qwen3": (ours.qwen3, 2)}
every_qwen = pytest.mark.parametrize("name", QWEN)
every_model = pytest.mark.parametrize(
    "name", ["llava", "paligemma", "gemma3", "smolvlm", "idefics3", "internvl", *QWEN]
)


def made(name, count=1):
    """Give a module, what is loaded with a tokenizer that has a chat's template, and pictures: not square where that may be."""
    module = getattr(ours, name)()
    size = (32, 48) if name in QWEN else (64, 64)
    return module, ours.loaded(module, ours.chatting()), ours.pictures(count, *size)


def spell(text):
    return ours.llama()(text, add_special_tokens=False)["input_ids"]


def by_hand(name, images, answer, prompt=PROMPT):
    """Write the model's input out by hand for one picture: the chat, as many image tokens as it has cells, and the answer."""
    cells = {"llava": 64, "paligemma": 64}.get(name, 24 if name in QWEN else 16)
    start = [ours.BOS, *spell("user :"), *[ours.IMAGE] * cells, *spell(prompt), *spell("bot :")]
    tokens = torch.tensor([[*start, *answer]])
    given = {"input_ids": tokens, "pixel_values": images}
    if name in ("smolvlm", "idefics3"):
        given["pixel_values"] = images[:, None]
    if name == "gemma3":
        given["token_type_ids"] = (tokens == ours.IMAGE).long()
    if name == "paligemma":
        given["token_type_ids"] = torch.tensor([[0] * len(start) + [1] * len(answer)])
    if name in QWEN:
        given["mm_token_type_ids"] = (tokens == ours.IMAGE).long()
        given["pixel_values"] = patches_by_hand(images[0], 4, 2)
        given["image_grid_thw"] = torch.tensor([[1, 8, 12]])
    return given


def patches_by_hand(image, patch, merge):
    """Cut a picture into patches one by one: those that are merged follow each other, each twice for two frames."""
    _, rows, columns = image.shape
    side = patch * merge
    found = []
    for top in range(0, rows, side):
        for left in range(0, columns, side):
            for down in range(merge):
                for across in range(merge):
                    y, x = top + down * patch, left + across * patch
                    piece = image[:, y : y + patch, x : x + patch]
                    found.append(torch.stack([piece, piece], 1).flatten())
    return torch.stack(found)


def scored_by_hand(module, given, answer):
    logits = module(**given).logits[0].log_softmax(-1)
    return [logits[at - len(answer) - 1, token] for at, token in enumerate(answer)]


@every_model
def test_an_answer_scores_what_the_model_gives_to_the_chat_written_by_hand(name):
    module, model, images = made(name)
    found = glowmap.explain(model, images, target=Text(ANSWER, prompt=PROMPT), method="input_gradient")
    with torch.no_grad():
        expected = scored_by_hand(module, by_hand(name, images, spell(ANSWER)), spell(ANSWER))
    assert float(found.scores) == pytest.approx(float(sum(expected)), abs=2e-4)


@every_model
def test_the_map_is_gradient_times_activation_at_the_layer_found(name):
    module, model, images = made(name)
    found = glowmap.explain(model, images, target=Text(ANSWER, prompt=PROMPT), method="hires_cam")
    kept = []
    hook = module.get_submodule(found.layer).register_forward_hook(lambda _m, _i, out: kept.append(out))
    given = by_hand(name, images, spell(ANSWER))
    given["pixel_values"] = given["pixel_values"].clone().requires_grad_()
    score = sum(scored_by_hand(module, given, spell(ANSWER)))
    hook.remove()
    output = kept[0] if isinstance(kept[0], torch.Tensor) else kept[0][0]
    (slope,) = torch.autograd.grad(score, output)
    cam = (slope * output).sum(-1).flatten()
    rows, columns = found.raw.shape[1:]
    if name == "qwen25":  # whose windows are of 2 x 2 cells
        order = torch.arange(24).reshape(2, 2, 3, 2).permute(0, 2, 1, 3).flatten()
        cam = cam[order.argsort()]
    torch.testing.assert_close(
        found.raw[0], cam[-rows * columns :].reshape(rows, columns).detach(), rtol=1e-3, atol=1e-5
    )
    assert found.raw.abs().max() > 1e-3
    assert "multi_modal_projector" in found.layer or "merger" in found.layer or "post_layernorm" in found.layer
    if name in QWEN:
        assert (rows, columns) == (4, 6)


@every_qwen
def test_a_change_in_one_patch_changes_the_one_cell_that_lies_there(name):
    build, _ = QWEN[name]
    module = type(build())(build().config)
    module.load_state_dict(build().state_dict())
    with torch.no_grad():  # no patch sees another
        for block in module.model.visual.blocks:
            block.attn.proj.weight.zero_()
            block.attn.proj.bias.zero_()
    model = ours.loaded(module.eval(), ours.chatting())
    images = ours.pictures(1, 32, 48)
    found = glowmap.explain(model, images, target=Text(ANSWER, prompt=PROMPT))
    assert found.raw.shape == (1, 4, 6)
    (heard,) = model.text_interface.passes(model, model.read(images), [Text(ANSWER, prompt=PROMPT)])

    def cells(pixels):
        kept = []
        with torch.no_grad(), heard.model.around_forward(module):
            hook = module.get_submodule(found.layer).register_forward_hook(lambda _m, _i, out: kept.append(out))
            module(**{**heard.batch.keywords, "pixel_values": pixels})
            hook.remove()
        return kept[0].reshape(4, 6, -1)

    before = cells(images)
    for row, column in ((0, 1), (1, 0), (2, 4), (3, 5)):
        changed = images.clone()
        changed[:, :, row * 8 + 5, column * 8 + 2] += 3
        moved = (cells(changed) - before).abs().amax(-1) > 1e-6
        assert moved.nonzero().tolist() == [[row, column]]


@every_qwen
def test_pictures_become_the_patches_that_the_processor_makes(name):
    build, merge = QWEN[name]
    images = transformers.Qwen2VLImageProcessor(
        patch_size=4, merge_size=merge, temporal_patch_size=2, size={"shortest_edge": 256, "longest_edge": 2048}
    )
    processor = transformers.Qwen2VLProcessor(images, _words_of_qwen(), _videos(), chat_template=ours.CHAT)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (37, 61, 3), np.uint8))
    model = glowmap.load(build(), processor=processor)
    batch = model.read(picture)
    own = images(images=picture, return_tensors="pt")
    patches, grid = image_layout.in_patches(batch.images, 4, merge, 2)
    assert grid.tolist() == own["image_grid_thw"].tolist()
    assert grid[0, 1] != grid[0, 2]
    torch.testing.assert_close(patches, own["pixel_values"], rtol=0, atol=0)
    found = glowmap.explain(model, picture, target=Text(ANSWER, prompt=PROMPT))
    assert found.raw.shape[1:] == (grid[0, 1] // 2, grid[0, 2] // 2)
    assert not any("mean and std" in caution for caution in found.cautions)


def _words_of_qwen():
    return ours.chatting(extra=["<v>"], extra_special_tokens={"image_token": "<image>", "video_token": "<v>"})


def _videos():
    return transformers.Qwen2VLVideoProcessor(patch_size=4)


def test_patches_are_cut_in_the_order_of_those_that_are_merged():
    images = ours.pictures(2, 16, 24)
    patches, grid = image_layout.in_patches(images, 4, 2, 2)
    expected = torch.cat([patches_by_hand(image, 4, 2) for image in images])
    torch.testing.assert_close(patches, expected, rtol=0, atol=0)
    assert grid.tolist() == [[1, 4, 6]] * 2
    for at in range(2):
        laid = image_layout.out_of_patches(patches.chunk(2)[at], grid[at], 4, 2, 2)
        torch.testing.assert_close(laid, images[at], rtol=0, atol=0)


@every_model
def test_what_the_model_says_itself_is_what_it_generates(name):
    module, model, images = made(name)
    images = images * 2
    (heard,) = model.text_interface.passes(model, model.read(images), [Text(ANSWER, prompt=PROMPT)])
    given = by_hand(name, images, [])
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    generated = module.generate(**given, do_sample=False, num_beams=1, max_new_tokens=64)[0]
    own = generated[given["input_ids"].shape[1] :].tolist()
    ends = {ours.EOS, ours.PAD, ours.IMAGE}
    own = own[: next((at for at, token in enumerate(own) if token in ends), len(own))]
    assert (
        heard.batch.keywords["input_ids"][0, : given["input_ids"].shape[1]].tolist() == given["input_ids"][0].tolist()
    )
    if not any(token not in ours.signs(model.text_interface.tokenizer) for token in own):
        with pytest.raises(TargetError, match="writes an empty text for image 0"):
            glowmap.explain(model, images, target=Text(prompt=PROMPT), method="input_gradient")
        return
    found = glowmap.explain(model, images, target=Text(prompt=PROMPT), method="input_gradient")
    scored = [token for token in own if token not in ours.signs(model.text_interface.tokenizer)]
    assert found.target_names == (f"{model.text_interface.tokenizer.decode(scored).strip()!r} to {PROMPT!r}",)
    with torch.no_grad():
        scores = scored_by_hand(module, by_hand(name, images, own), own)
    expected = sum(float(one) for one, token in zip(scores, own, strict=True) if token in scored)
    assert float(found.scores) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("name", ["llava", "gemma3", "smolvlm", *QWEN])
def test_a_batch_is_explained_as_its_pictures_one_by_one(name):
    _, model, images = made(name, 2)
    question = Text(ANSWER, prompt=PROMPT)
    together = glowmap.explain(model, images, target=question)
    for at in range(2):
        one = glowmap.explain(model, images[at : at + 1], target=question, layer=together.layer)
        torch.testing.assert_close(together.raw[at], one.raw[0], rtol=1e-3, atol=1e-5)
    assert not torch.allclose(together.raw[0], together.raw[1])


@pytest.mark.parametrize("name", ["llava", *QWEN])
def test_words_add_up_to_the_answer_in_scores_and_in_maps(name):
    _, model, images = made(name)
    question = Text(ANSWER, prompt=PROMPT, each_word=True)
    answer, *words = glowmap.explain(model, images, target=question, method="hires_cam")
    assert len(words) == 5
    torch.testing.assert_close(sum(word.scores for word in words), answer.scores, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(sum(word.raw for word in words), answer.raw, rtol=1e-3, atol=1e-5)
    assert words[1].target_names == (f"'dogs' in {ANSWER!r}",)


def test_another_prompt_leads_to_another_score():
    _, model, images = made("llava")
    questions = [Text("red", prompt="what colour is the car ?"), Text("red", prompt=PROMPT), Text("red")]
    scores = [float(one.scores) for one in glowmap.explain(model, images, target=questions)]
    assert len({round(score, 3) for score in scores}) == 3


@pytest.mark.parametrize("method", ["recipro_cam", "rise", "occlusion", "integrated_gradients"])
@pytest.mark.parametrize("name", ["llava", *QWEN])
def test_methods_that_ask_again_run_on_answers(name, method):
    _, model, images = made(name, 2)
    parameters = {"rise": {"masks": 6}, "integrated_gradients": {"steps": 3}, "occlusion": {"window": 16}}.get(
        method, {}
    )
    with_parameters = glowmap.METHODS[method].with_parameters(**parameters)
    together = glowmap.explain(model, images, target=Text(ANSWER, prompt=PROMPT), method=with_parameters)
    one = glowmap.explain(model, images[:1], target=Text(ANSWER, prompt=PROMPT), method=with_parameters)
    torch.testing.assert_close(together.raw[:1], one.raw, rtol=1e-2, atol=1e-3)
    assert together.raw.any()
    assert not any("another answer" in caution for caution in together.cautions)


@every_qwen
def test_the_gradient_reaches_every_pixel_of_a_picture_of_patches(name):
    _, model, images = made(name)
    found = glowmap.explain(model, images, target=Text(ANSWER, prompt=PROMPT), method="input_gradient")
    assert found.raw.shape == (1, 32, 48)
    assert (found.raw != 0).float().mean() > 0.99


@every_qwen
def test_hooks_and_forwards_are_given_back(name):
    module, model, images = made(name)

    def hooks():
        return {
            part: (len(one._forward_hooks), len(one._forward_pre_hooks), "forward" in one.__dict__)
            for part, one in module.named_modules()
        }

    before = hooks()
    glowmap.explain(model, images, target=Text(ANSWER, prompt=PROMPT))
    with pytest.raises(TargetError):
        glowmap.explain(model, images, target=Text(ANSWER, prompt=PROMPT, word="cat"))
    assert hooks() == before


def processors():
    tokenizer = ours.chatting
    size = {"height": 64, "width": 64}
    clip = transformers.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=size)
    siglip = transformers.SiglipImageProcessor(size=size)
    siglip.image_seq_length = 64
    tiles = {"size": {"longest_edge": 128}, "max_image_size": {"longest_edge": 64}}
    named = {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<image>"}
    return {
        "llava": lambda: transformers.LlavaProcessor(
            clip, tokenizer(), patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
        ),
        "paligemma": lambda: transformers.PaliGemmaProcessor(siglip, ours.llama()),
        "gemma3": lambda: transformers.Gemma3Processor(
            transformers.Gemma3ImageProcessor(size=size),
            ours.llama(extra=["<boi>", "<eoi>"], extra_special_tokens=named),
            image_seq_length=16,
        ),
        "idefics3": lambda: transformers.Idefics3Processor(
            transformers.Idefics3ImageProcessor(**tiles),
            ours.llama(extra=["<fake_token_around_image>"]),
            image_seq_len=16,
        ),
    }


def test_llavas_processor_and_glowmap_spell_the_same_chat():
    module, processor = ours.llava(), processors()["llava"]()
    processor.chat_template = ours.CHAT
    model = glowmap.load(module, processor=processor)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 90, 3), np.uint8))
    (heard,) = model.text_interface.passes(model, model.read(picture), [Text(ANSWER, prompt=PROMPT)])
    turn = [{"type": "image", "image": picture}, {"type": "text", "text": PROMPT}]
    own = processor.apply_chat_template(
        [{"role": "user", "content": turn}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )
    assert heard.batch.keywords["input_ids"][0].tolist() == [*own["input_ids"][0].tolist(), *spell(ANSWER)]
    torch.testing.assert_close(heard.batch.images, own["pixel_values"])
    found = glowmap.explain(model, picture, target=Text(ANSWER, prompt=PROMPT))
    assert found.raw.shape == (1, 8, 8)


def test_paligemmas_processor_and_glowmap_spell_the_same_prompt():
    module, processor = ours.paligemma(), processors()["paligemma"]()
    model = glowmap.load(module, processor=processor)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 90, 3), np.uint8))
    (heard,) = model.text_interface.passes(model, model.read(picture), [Text(ANSWER, prompt=PROMPT)])
    own = processor(images=picture, text="<image>" + PROMPT, suffix=ANSWER)
    end = [processor.tokenizer.eos_token_id]
    assert [*heard.batch.keywords["input_ids"][0].tolist(), *end] == own["input_ids"][0]
    assert heard.batch.keywords["token_type_ids"][0].tolist() == own["token_type_ids"][0][:-1]


def test_a_picture_is_one_tile_where_its_processor_would_cut_it():
    processor = processors()["idefics3"]()
    text = transformers.LlamaConfig(**{**ours.LANGUAGE, "vocab_size": len(processor.tokenizer)})
    config = transformers.Idefics3Config(
        vision_config=ours.PICTURE, text_config=text, image_token_id=ours.IMAGE, scale_factor=2, pad_token_id=ours.PAD
    )
    module = ours.lively(transformers.Idefics3ForConditionalGeneration(config))
    assert processor.image_processor.do_image_splitting
    model = glowmap.load(module, processor=processor)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (120, 120, 3), np.uint8))
    assert model.read(picture).images.shape == (1, 3, 64, 64)
    (heard,) = model.text_interface.passes(model, model.read(picture), [Text(ANSWER, prompt=PROMPT)])
    tokens = heard.batch.keywords["input_ids"][0]
    assert int((tokens == ours.IMAGE).sum()) == 16
    found = glowmap.explain(model, picture, target=Text(ANSWER, prompt=PROMPT))
    assert found.raw.any()


def test_gemmas_processor_writes_more_around_the_picture():
    module = transformers.Gemma3ForConditionalGeneration(
        transformers.Gemma3Config(
            vision_config=transformers.SiglipVisionConfig(**ours.PICTURE),
            text_config=transformers.Gemma3TextConfig(**{**ours.LANGUAGE, "vocab_size": ours.COUNT + 2}),
            image_token_id=ours.IMAGE,
            mm_tokens_per_image=16,
        )
    )
    processor = processors()["gemma3"]()
    model = glowmap.load(ours.lively(module), processor=processor)
    (heard,) = model.text_interface.passes(model, model.read(ours.pictures()), [Text(ANSWER, prompt=PROMPT)])
    own = processor(images=Image.new("RGB", (64, 64)), text="<boi>" + PROMPT)
    assert heard.batch.keywords["input_ids"][0].tolist() == [*own["input_ids"][0], *spell(ANSWER)]
    types = [*own["token_type_ids"][0], *[0] * len(spell(ANSWER))]
    assert heard.batch.keywords["token_type_ids"][0].tolist() == types


def test_sides_that_are_no_whole_patches_are_refused():
    _, model, _ = made("qwen2")
    with pytest.raises(InputError, match="multiples of 8; give pictures"):
        glowmap.explain(model, ours.pictures(1, 30, 48), target=Text(ANSWER))


def test_a_model_of_tiles_says_why_it_cannot_be_asked():
    picture = transformers.CLIPVisionConfig(**ours.PICTURE)
    config = transformers.LlavaNextConfig(
        vision_config=picture,
        text_config=transformers.LlamaConfig(**ours.LANGUAGE),
        image_token_id=ours.IMAGE,
        image_grid_pinpoints=[[64, 128]],
    )
    model = ours.loaded(transformers.LlavaNextForConditionalGeneration(config).eval(), ours.chatting())
    for question in (Text(ANSWER), None):
        with pytest.raises(TargetError, match="cuts a picture into tiles of several sizes, which are no one grid"):
            glowmap.explain(model, ours.pictures(), target=question)


def test_a_prompt_with_a_second_picture_in_it_is_refused():
    _, model, images = made("llava")
    with pytest.raises(TargetError, match="has 2 places for pictures, where one is given"):
        glowmap.explain(model, images, target=Text(ANSWER, prompt="what <image> is this ?"))


def test_a_tokenizer_of_another_model_says_what_is_missing():
    other = ours.bert()
    other.image_token = "cat"
    with pytest.raises(TargetError, match="has 0 places for pictures, .* give the model's own processor"):
        glowmap.explain(ours.loaded(ours.llava(), other), ours.pictures(), target=Text(ANSWER))


def cam_at_the_picture(module, given, layer, score):
    """Gradient times activation at the tokens that stand for the picture, by hand."""
    given, kept = {**given, "pixel_values": given["pixel_values"].clone().requires_grad_()}, []
    hook = module.get_submodule(layer).register_forward_hook(lambda _m, _i, out: kept.append(out))
    value = score(given)
    hook.remove()
    output = kept[0] if isinstance(kept[0], torch.Tensor) else kept[0][0]
    (slope,) = torch.autograd.grad(value, output)
    return (slope * output).sum(-1)[0, given["input_ids"][0] == ours.IMAGE].detach()


def layers_among_words(name):
    part = "model.text_model" if name in ("smolvlm", "idefics3") else "model.language_model"
    return f"{part}.layers.0", f"{part}.layers.2.input_layernorm"


@pytest.mark.parametrize("prompt", [None, PROMPT])
@every_model
def test_a_layer_among_words_is_read_where_the_pictures_tokens_are(name, prompt):
    module, model, images = made(name)
    given, answer = by_hand(name, images, spell("a dog"), prompt or ""), spell("a dog")
    for layer in layers_among_words(name):
        found = glowmap.explain(model, images, target=Text("a dog", prompt=prompt), layer=layer, method="hires_cam")
        wanted = cam_at_the_picture(module, given, layer, lambda own: sum(scored_by_hand(module, own, answer)))
        torch.testing.assert_close(found.raw.flatten(), wanted, rtol=1e-3, atol=1e-5)
        assert found.raw.abs().max() > 1e-4
        assert not any("proven" in caution for caution in found.cautions)


@pytest.mark.parametrize("name", ["llava", "paligemma", "gemma3", "internvl"])
def test_words_that_are_brought_say_too_where_the_picture_is_among_them(name):
    module, model, images = made(name)
    given, token = by_hand(name, images, spell("a dog"), ""), spell("cat")[0]
    for layer in layers_among_words(name):
        found = glowmap.explain(model, given, target=token, layer=layer, method="hires_cam")
        wanted = cam_at_the_picture(module, given, layer, lambda own: module(**own).logits[0, -1, token])
        torch.testing.assert_close(found.raw.flatten(), wanted, rtol=1e-3, atol=1e-5)
        assert found.raw.abs().max() > 1e-6


def test_a_batch_is_read_among_words_where_each_of_its_pictures_is():
    module, model, images = made("internvl", 2)
    layer, question, answer = "model.language_model.layers.0", Text("a dog"), spell("a dog")
    together = glowmap.explain(model, images, target=question, layer=layer, method="hires_cam")
    for image in range(2):
        given = by_hand("internvl", images[image : image + 1], answer, "")
        wanted = cam_at_the_picture(module, given, layer, lambda own: sum(scored_by_hand(module, own, answer)))
        torch.testing.assert_close(together.raw[image].flatten(), wanted, rtol=1e-3, atol=1e-5)


@every_qwen
def test_what_qwen_notes_of_a_text_is_given_back(name):
    module, model, images = made(name)
    mine = torch.ones(1, 1, dtype=torch.long)
    for before in (None, mine):
        module.model.rope_deltas = before
        glowmap.explain(model, images, target=Text(ANSWER, prompt=PROMPT))
        assert module.model.rope_deltas is before
        model.text_interface.passes(model, model.read(images), [Text(prompt=PROMPT)])  # it speaks
        assert module.model.rope_deltas is before
        with pytest.raises(TargetError):
            glowmap.explain(model, images, target=Text(ANSWER, prompt=PROMPT, word="cat"))
        assert module.model.rope_deltas is before
    module.model.rope_deltas = None
