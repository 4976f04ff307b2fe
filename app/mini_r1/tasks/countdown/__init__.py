"""The Countdown game: problems, prompt, scoring, solver, generator. Needs the standard library, `errors` and `values`.

Training and evaluation know the game through one module, `mini_r1.tasks.countdown.task`.
"""
