"""Rules on evaluation: metrics, conditions, baselines and trackers that the task has."""

from __future__ import annotations

from collections.abc import Iterator

from llmkit.errors import RecipeError
from llmkit.evaluate.conditions import parse_condition
from llmkit.metrics.table import GENERATED_METRICS, TASK_METRICS
from llmkit.recipe.rules import Problem, is_set, nearest
from llmkit.recipe.sections import Recipe
from llmkit.recipe.tasks import BASELINES

TRACKERS = ("tensorboard", "wandb", "trackio", "comet_ml", "aim", "mlflow", "clearml", "dvclive", "swanlab")
"""What Accelerate 1.15 knows (`accelerate.utils.LoggerType`)."""


def problems(recipe: Recipe) -> Iterator[Problem]:
    """What is wrong with evaluation, its baselines and trackers."""
    yield from _evaluation(recipe)
    yield from _baselines(recipe)


def _evaluation(recipe: Recipe) -> Iterator[Problem]:
    evaluation, training = recipe.evaluation, recipe.training
    validated = bool(recipe.data.validation) or recipe.data.validation_fraction is not None
    best = "data.validation or data.validation_fraction is needed for it"
    known = TASK_METRICS[recipe.task.type]
    if not validated:
        if is_set(training, "early_stopping_patience"):
            yield Problem("training.early_stopping_patience", best)
        if recipe.checkpoint.save_best:
            yield Problem("checkpoint.save_best", best)
        if is_set(evaluation, "eval_steps"):
            yield Problem("evaluation.eval_steps", best)
    if is_set(evaluation, "predict_with_generate") and recipe.task.type not in GENERATED_METRICS:
        message = f"the task {recipe.task.type} is not scored by what a model writes and would ignore it"
        yield Problem("evaluation.predict_with_generate", message)
    metric = evaluation.metric_for_best_model
    if evaluation.predict_with_generate is False:
        asked = {"metrics": evaluation.metrics or (), "fail_if": evaluation.fail_if, "metric_for_best_model": [metric]}
        for key, names in asked.items():
            for name in GENERATED_METRICS.get(recipe.task.type, ()):
                if name in names:
                    yield Problem(f"evaluation.{key}", f"{name} needs predict_with_generate, which is false")
    if metric is not None and metric.removeprefix("eval_") not in known:
        yield Problem("evaluation.metric_for_best_model", f"unknown metric {metric}; {nearest(metric, known)}")
    elif metric is not None and not recipe.checkpoint.save_best and training.early_stopping_patience is None:
        yield Problem(
            "evaluation.metric_for_best_model", "only checkpoint.save_best and training.early_stopping_patience read it"
        )
    for index, name in enumerate(evaluation.metrics or ()):
        if name not in known:
            yield Problem(f"evaluation.metrics.{index}", f"unknown metric {name}; {nearest(name, known)}")
    for name, condition in evaluation.fail_if.items():
        if name not in known:
            yield Problem(f"evaluation.fail_if.{name}", f"unknown metric of {recipe.task.type}; {nearest(name, known)}")
            continue
        try:
            parse_condition(name, condition)
        except RecipeError as error:
            yield Problem(f"evaluation.fail_if.{name}", error.message)
    for index, name in enumerate(recipe.logging.report_to):
        if name not in TRACKERS:
            yield Problem(f"logging.report_to.{index}", f"unknown tracker {name}; {nearest(name, TRACKERS)}")


def _baselines(recipe: Recipe) -> Iterator[Problem]:
    task = recipe.task.type
    fitting = [name for name, tasks in BASELINES.items() if task in tasks]
    for index, name in enumerate(recipe.evaluation.baselines):
        if name not in fitting:
            those = f"those that do are {', '.join(fitting)}" if fitting else "none does"
            yield Problem(f"evaluation.baselines.{index}", f"{name} does not apply to {task}; {those}")
