"""The Countdown game: problems, prompt, scoring, solver, generator. Needs the standard library and other basics.

Training and evaluation know it as a `Task`: `countdown_task.CountdownTask`.
"""
