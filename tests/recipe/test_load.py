"""Loading a recipe: YAML with places, extends, --set, types, and messages that say where and what."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from llmkit.errors import RecipeError
from llmkit.recipe.load import load_recipe, locate

BASE = """\
output_dir: runs/x
task: {type: causal_lm}
model:
  config: {model_type: gpt2, n_layer: 2}
tokenizer:
  train: {vocab_size: 300}
data:
  train:
    - path: a.jsonl
training:
  max_steps: 10
"""


def write(directory: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = directory / name
    path.write_text(text, encoding="utf-8")
    return path


def message(path: Path, *overrides: str, **options: object) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides, **options)  # type: ignore[arg-type]
    assert caught.value.status == 2
    return str(caught.value)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(tmp_path, BASE)


def test_a_good_recipe_loads(base: Path) -> None:
    recipe = load_recipe(base)
    assert recipe.training.max_steps == 10
    assert recipe.seed == 42
    assert recipe.training.learning_rate is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("  lerning_rate: 1", ":12: training.lerning_rate: unknown key; did you mean learning_rate?"),
        ("learning_rate: 5e-4", ":12: learning_rate: unknown key; did you mean training.learning_rate?"),
        ("lr: 5e-4", ":12: lr: unknown key; did you mean training.learning_rate?"),
        ("gradient_accumulation_steps: 4", "derived from training.global_batch_size"),
        ("  optim: adamm", ":12: training.optim: expected one of adamw,"),
        ("  optim: adamm", "did you mean adamw?"),
        ("  warmup_steps: '5'", "expected a number of at least 0, got the text '5'; write 5 without quotes"),
        ("  global_batch_size: 8.0", "expected a whole number of at least 1, got 8.0; write 8"),
        ("  global_batch_size: true", "expected a whole number of at least 1, got true"),
        ("  global_batch_size: 0", "expected a whole number of at least 1, got 0"),
        ("  gradient_checkpointing: yes", "expected true or false, got the text 'yes'; write true"),
        ("  learning_rate: .nan", ":12: training.learning_rate: .nan is not a finite number"),
        ("  max_steps: 20", ":12: training.max_steps: duplicate key; it is already on line 11"),
        ("  learning_rate: !!float 5", "the tag tag:yaml.org,2002:float is not allowed"),
        ("  learning_rate: !!python/object/apply:os.system [id]", "is not allowed in a recipe"),
        ("\tlearning_rate: 1", ":12: a tab cannot indent YAML; use spaces"),
        ("seed: [1", "not valid YAML"),
        ("---\nseed: 1", ":12: a second YAML document begins here"),
        ("seed: 5\nlogging: 7", ":13: logging: expected a map with the keys logging_steps, report_to, got 7"),
        ("x: &a [*a]", "names no finished anchor"),
        ("extends: 5", "expected the path of another recipe"),
    ],
)
def test_mistakes_are_told_with_line_and_suggestion(tmp_path: Path, line: str, expected: str) -> None:
    path = write(tmp_path, f"{BASE}{line}\n")
    told = message(path)
    assert told.startswith(f"{path}:")
    assert expected in told


def test_all_mistakes_are_told_at_once(base: Path) -> None:
    base.write_text(BASE.replace("max_steps", "max_stps").replace("path:", "pth:"))
    lines = message(base).splitlines()
    assert len(lines) == 3  # an unknown key, a missing one, an unknown one
    assert all(line.startswith(f"{base}:") for line in lines)
    assert "training.max_stps: unknown key; did you mean max_steps?" in lines[-1]
    assert any("data.train.0.path: required key is missing in the section data.train.0" in line for line in lines)


def test_missing_sections_are_named(tmp_path: Path) -> None:
    told = message(write(tmp_path, "seed: 1\n"))
    assert "output_dir: required key is missing in the recipe; expected text" in told
    assert "task: required key is missing in the recipe; expected a map with the key type" in told


@pytest.mark.parametrize("text", ["", "# nothing\n", "null\n", "- a\n", "text\n"])
def test_a_file_without_a_map_is_refused(tmp_path: Path, text: str) -> None:
    assert "a recipe is a map" in message(write(tmp_path, text))


def test_unknown_and_later_names_of_tasks_and_steps(tmp_path: Path) -> None:
    told = message(write(tmp_path, BASE.replace("causal_lm", "causal_ml")))
    assert "task.type: expected one of causal_lm, masked_lm," in told
    assert "got the text 'causal_ml'; did you mean causal_lm?" in told
    told = message(write(tmp_path, BASE.replace("data:", "data:\n  clean: [{step: minhash_dedup}]")))
    assert ":8: data.clean.0.step: minhash_dedup is not available in this version" in told


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("evaluation.suites=[{suite: x}]", "evaluation.suites"),
        ("distributed.strategy=fsdp", "distributed.strategy"),
    ],
)
def test_what_is_not_here_yet_is_refused(base: Path, override: str, key: str) -> None:
    told = message(base, override)
    assert f"--set: {key}: " in told
    assert "not available in this version" in told


def test_numbers_and_words_follow_yaml_1_2(tmp_path: Path) -> None:
    text = BASE + "  learning_rate: 5e-5\n  max_grad_norm: 1\ngeneration: {stop_strings: [no, on, '1', 0x]}\n"
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.training.learning_rate == 5e-5
    assert recipe.training.max_grad_norm == 1.0
    assert recipe.generation.stop_strings == ["no", "on", "1", "0x"]


def test_null_is_the_default_or_off(tmp_path: Path) -> None:
    text = BASE + "  max_grad_norm: null\n  optim: ~\nseed:\ndistributed: null\ngeneration: {max_new_tokens: null}\n"
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.training.max_grad_norm is None
    assert recipe.seed == 42
    assert recipe.generation.max_new_tokens == 128
    assert recipe.distributed.strategy == "auto"


def test_chinese_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "配方.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + BASE.replace("runs/x", "runs/红楼梦").encode())
    assert load_recipe(path).output_dir == "runs/红楼梦"
    path.write_bytes(BASE.replace("runs/x", "runs/红楼梦").encode("gbk"))
    assert message(path).startswith(f"{path}:1: not UTF-8")


def test_missing_directory_and_unreadable_files(tmp_path: Path) -> None:
    write(tmp_path, BASE, "pretrain.yaml")
    assert f"did you mean {tmp_path / 'pretrain.yaml'}?" in message(tmp_path / "pretrian.yaml")
    assert "is a directory" in message(tmp_path)
    assert "does not exist" in message(tmp_path / "no" / "x.yaml")
    assert "cannot be read" in message(Path("a\0b.yaml"))
    assert "larger than 1,000,000 bytes" in message(write(tmp_path, "#" * 1_000_001))


def test_bombs_are_refused(tmp_path: Path) -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    assert "more than 100,000 values" in message(write(tmp_path, "\n".join(rows)))
    assert "nested deeper than 40 levels" in message(write(tmp_path, "a: " + "[" * 5000 + "]" * 5000))


def test_aliases_are_copies(tmp_path: Path) -> None:
    text = BASE.replace("- path: a.jsonl", "- &first {path: a.jsonl}\n    - *first")
    recipe = load_recipe(write(tmp_path, text), ["data.train.1.path=b.jsonl"])
    assert [source.path for source in recipe.data.train] == ["a.jsonl", "b.jsonl"]


class TestExtends:
    def test_maps_merge_and_lists_are_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "sub").mkdir()
        write(tmp_path, BASE + "  learning_rate: 1e-3\n")
        child = "extends: ../recipe.yaml\ntraining: {max_steps: 5}\ndata: {train: [{path: b.jsonl}]}\n"
        recipe = load_recipe(write(tmp_path / "sub", child))
        assert recipe.training.max_steps == 5
        assert recipe.training.learning_rate == 1e-3
        assert [source.path for source in recipe.data.train] == ["b.jsonl"]

    def test_another_task_or_architecture_replaces_the_whole_map(self, tmp_path: Path) -> None:
        write(tmp_path, BASE.replace("{type: causal_lm}", "{type: causal_lm, fim_rate: 0.5}"))
        child = "extends: recipe.yaml\ntask: {type: instruction}\nmodel: {config: {model_type: llama}}\n"
        recipe = load_recipe(write(tmp_path, child, "child.yaml"))
        assert recipe.task.type == "instruction"
        assert recipe.model.config == {"model_type": "llama"}

    def test_a_mistake_names_the_file_where_it_stands(self, tmp_path: Path) -> None:
        parent = write(tmp_path, BASE + "  optim: adamm\n", "base.yaml")
        child = write(tmp_path, "extends: base.yaml\nsed: 1\n", "child.yaml")
        told = message(child)
        assert f"{parent}:12: training.optim" in told
        assert f"{child}:2: sed: unknown key; did you mean seed?" in told

    def test_cycles_and_missing_bases(self, tmp_path: Path) -> None:
        one = write(tmp_path, "extends: two.yaml\n", "one.yaml")
        write(tmp_path, "extends: one.yaml\n", "two.yaml")
        assert "extends itself" in message(one)
        lost = write(tmp_path, "seed: 1\nextends: thre.yaml\n", "lost.yaml")
        told = message(lost)
        assert told.startswith(f"{lost}:2: extends: ") and "no such recipe" in told


class TestSet:
    def test_values_are_yaml_and_lists_go_by_index(self, base: Path) -> None:
        overrides = [
            "training.learning_rate=5e-5",
            "data.train.0.path=红楼梦.txt",
            "data.train.1={path: c.jsonl}",
            "checkpoint.save_best=null",
            "generation.stop_strings=[a, b=c]",
        ]
        recipe = load_recipe(base, overrides)
        assert recipe.training.learning_rate == 5e-5
        assert [source.path for source in recipe.data.train] == ["红楼梦.txt", "c.jsonl"]
        assert recipe.generation.stop_strings == ["a", "b=c"]

    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("training.max_stps=5", "--set: training.max_stps: unknown key; did you mean max_steps?"),
            ("training.max_steps=x", "--set: training.max_steps: expected a whole number of at least 1"),
            ("training.max_steps", "--set: expected KEY=VALUE"),
            ("=5", "--set: expected KEY=VALUE"),
            ("data.train.7.path=x", "--set: data.train.7.path: data.train is a list"),
            ("data.train.first.path=x", "--set: data.train.first.path: data.train is a list"),
            ("output_dir.x=1", "--set: output_dir.x: output_dir is a single value"),
            ("seed=[1", "--set: seed: not valid YAML"),
            ("extends=x.yaml", "--set: extends: the base recipe cannot be chosen on the command line"),
        ],
    )
    def test_mistakes_name_the_option(self, base: Path, override: str, expected: str) -> None:
        assert message(base, override).startswith(expected)


def test_secrets_are_refused_and_not_repeated(base: Path) -> None:
    secret = "hf_" + "a1B2" * 9
    told = message(base, f"model.revision={secret}", "sed=1")
    assert "looks like a Hugging Face token" in told
    assert secret not in told


def test_locate_finds_keys_for_later_errors(base: Path) -> None:
    assert locate(base, [], "model.config.n_layer") == (str(base), 4)
    assert locate(base, [], "data.train.0.columns.text") == (str(base), 9)
    assert locate(base, ["seed=3"], "seed") == ("--set", None)


def test_random_damage_raises_nothing_but_recipe_errors(tmp_path: Path) -> None:
    rng = random.Random(7)
    alphabet = list("abc:{}[],&*!|>-#'\"%@`\n\t 0.5e~é红\u2028\x07\x85")
    text = BASE + "  learning_rate: 5e-5\nevaluation: {fail_if: {loss: '> 3'}}\n"
    raised = 0
    for _ in range(400):
        damaged = list(text)
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(damaged))
            damaged[at : at + rng.randint(0, 3)] = rng.choices(alphabet, k=rng.randint(0, 3))
        path = write(tmp_path, "".join(damaged))
        try:
            load_recipe(path)
        except RecipeError:
            raised += 1
    assert raised > 100
