"""The Countdown game: problems, prompt, scoring, solver, generator. Standard library and `mini_r1.errors` only, never torch.

Training and evaluation know the game through one module, `mini_r1.tasks.countdown.task`.
"""
