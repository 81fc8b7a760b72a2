"""The tokenizer of the tiny task: one token per character."""

from __future__ import annotations

from tests.support.tiny_model import tiny_model


def test_a_text_is_its_characters_and_nothing_else() -> None:
    tokenizer = tiny_model().tokenizer()
    token_ids = tokenizer.encode("hello>")
    assert len(token_ids) == 6
    assert tokenizer.decode(token_ids) == "hello>"
    assert tokenizer.decode([*token_ids, 1, 0], skip_special_tokens=True) == "hello>"
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)


def test_a_conversation_is_the_plain_task_and_its_answer_is_marked() -> None:
    tokenizer = tiny_model().tokenizer()
    question = [{"role": "user", "content": "abc"}]
    prompt = tokenizer.apply_chat_template(
        question, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    whole = tokenizer.apply_chat_template(
        [*question, {"role": "assistant", "content": "cba"}],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    assert prompt == tokenizer.encode("abc>") == whole["input_ids"][:4]
    assert tokenizer.decode(whole["input_ids"]) == "abc>cba<end>"
    assert whole["assistant_masks"] == [0, 0, 0, 0, 1, 1, 1, 1]
