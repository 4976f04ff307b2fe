"""One worker's part of a training run: fresh, resumed, interrupted or finished already."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import torch
from rich.console import Console
from transformers import set_seed

from mini_r1.disk_errors import disk_errors
from mini_r1.errors import ExitCode, Stopped
from mini_r1.machine.lifeline import shares_vllm_device
from mini_r1.recipe.deepspeed_file import DeepSpeedFile
from mini_r1.recipe.fields import Recipe
from mini_r1.recipe.named_files import digests, refuse_other_files
from mini_r1.run.finished import Outcome, finished_step, print_finished
from mini_r1.run.run_dir import RunDir
from mini_r1.tasks.registry import find_task
from mini_r1.training import prepare, pushing, records
from mini_r1.training.arguments import fill_bucket, grpo_config
from mini_r1.training.attempt import Attempt, Inputs, WorkerContext
from mini_r1.training.checkpoints import checkpoint_to_resume, next_start
from mini_r1.training.gpu_check import refuse_broken_gpu
from mini_r1.training.recipe_data import load_task_data
from mini_r1.training.rollout_engines import start_engine
from mini_r1.training.schedule import plan_schedule
from mini_r1.training.supervised import Phases, StopRequest, Supervisor
from mini_r1.training.trainer import CountdownTrainer
from mini_r1.training.world import World


def train(
    recipe: Recipe,
    run: RunDir,
    command: Sequence[str],
    console: Console,
    deepspeed: DeepSpeedFile | None = None,
    started: Phases | None = None,
) -> Outcome:
    """Train as one worker until the run is finished or asked to stop; resume it if it has a checkpoint.

    The command line is for run.json. Without `deepspeed` every worker holds the whole training state. `started` is from
    `starting`, which holds the directory.

    Raises:
        KitError: the recipe, the data or the directory is wrong, or the machine failed.
        Stopped: asked to stop before an attempt began.
    """
    if not shares_vllm_device():
        refuse_broken_gpu()
    prepare.tune_cpu(recipe)
    supervisor = Supervisor.from_environment()
    world = World(recipe.ddp_timeout, supervisor.beat_again)
    console = console if world.main else Console(quiet=True)
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest(supervisor, world))
        stack.enter_context(world)
        stack.enter_context(world.peer_errors())
        stack.enter_context(disk_errors(run.path, lambda: next_start(run)))
        world.from_main(lambda: None if started else stack.enter_context(run.claim()))
        refuse_other_files(world.from_main(lambda: digests(recipe)), digests(recipe))
        finished_at = world.from_main(lambda: finished_step(run, recipe))
        if finished_at is not None:
            print_finished(console, run, finished_at)
            return Outcome(ExitCode.FINISHED, finished_at)
        world.from_main(lambda: pushing.refuse(recipe))
        phases = started or stack.enter_context(Phases(recipe, run, world.main, supervisor))
        context = WorkerContext(recipe, run, command, console, world, stop, phases, deepspeed)
        return _run_attempt(context, _load_inputs(context))


def _load_inputs(context: WorkerContext) -> Inputs:
    recipe, run, world, console = context.recipe, context.run, context.world, context.console
    stop = context.stop.on_any_rank
    data_commit, model_commit = world.from_main(lambda: records.commits(run))
    context.phases.begin("data")
    data = world.main_first(lambda: load_task_data(recipe, data_commit, console, stop))
    world.from_main(lambda: records.refuse_other_data(run, data))
    world.from_main(lambda: prepare.refuse_unsolvable(find_task(recipe.task), data, console, stop))
    code = prepare.load_code(recipe)
    context.phases.begin("model")
    _raise_if_stopped(context)
    found = world.main_first(lambda: prepare.find_model(recipe, data, console, model_commit, stop))
    if shares_vllm_device():
        torch.cuda.empty_cache()  # a built-in model was just made there: vLLM gets the memory
    _raise_if_stopped(context)
    prompts = world.from_main(lambda: records.prompts_per_step(run, recipe, world.size))
    schedule = plan_schedule(recipe, prompts, len(data.train), world.size)
    # Before the weights, whose loading may take minutes.
    dataset = prepare.ordered_dataset(recipe, data, found.tokenizer, schedule.steps * schedule.prompts)
    held_out = prepare.held_out_rows(recipe, data, found.tokenizer)
    policy = world.main_first(lambda: prepare.load_policy(recipe, found))
    _raise_if_stopped(context)
    return Inputs(data, schedule, dataset, held_out, policy, code)


def _raise_if_stopped(context: WorkerContext) -> None:
    if context.world.any(context.stop.on_any_rank()):
        raise Stopped(f"stopped before an attempt began in {context.run.path}: run the same command again")


def _run_attempt(context: WorkerContext, inputs: Inputs) -> Outcome:
    run, world, deepspeed = context.run, context.world, context.deepspeed
    stage = deepspeed.stage if deepspeed else 0
    if deepspeed is not None:
        deepspeed = fill_bucket(deepspeed, inputs.policy.model)
    resume = world.from_main(lambda: checkpoint_to_resume(run, context.console, world.size, stage))
    evaluate_first = context.recipe.eval_on_start if resume is None else bool(resume.facts.get("evaluation_due"))
    make_args = partial(
        grpo_config,
        context.recipe,
        run.path,
        inputs.schedule,
        evaluate_first=evaluate_first and context.recipe.eval_strategy != "no",
        deepspeed=deepspeed,
    )
    # vLLM measures the memory of a device that it shares: this process uses it only when vLLM is ready. transformers'
    # arguments set the CUDA device, which reserves memory.
    shared = shares_vllm_device()
    args = None if shared else make_args()
    folder = world.from_main(run.start_attempt)
    with records.log_to(folder / f"rank-{world.rank}.log"), ExitStack() as stack:
        attempt = Attempt(context, inputs, resume, folder, stack)
        try:
            attempt.phase("engine")
            recipe, policy, dataset = context.recipe, inputs.policy, inputs.dataset
            prompts = dataset["prompt"][: recipe.per_device_train_batch_size]
            engine = start_engine(recipe, policy, world, folder / "vllm.log", stack, attempt.stop, prompts)
            if shared:
                refuse_broken_gpu()
            limits = prepare.find_update_limits(recipe, world.size, deepspeed, shared_gpu=shared)
            set_seed(recipe.seed)
            trainer = CountdownTrainer(
                attempt,
                policy,
                engine,
                args=args or make_args(),
                train_dataset=dataset,
                held_out=inputs.held_out,
                code=inputs.code,
                limits=limits,
            )
            with world.peer_errors():
                trainer.train(resume_from_checkpoint=str(resume.path) if resume else None)
        except Stopped:
            return attempt.interrupted(attempt.start)
        except BaseException as error:
            attempt.failed(error)
            raise
        return attempt.ended(trainer.state.global_step, trainer.stopped_by, evaluation_due=trainer.evaluation_due)
