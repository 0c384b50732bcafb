"""What workers run whose start and memory are measured: nothing else is imported."""


def answer(back, imports):
    if imports:
        import dataclasses, json, logging, re
    back.put('here')


def wait(there, back, content):
    if content > 0:
        import dataclasses, json, logging, re
    if content > 1:
        table = {f'key {i}': i / 7 for i in range(100_000)}
    back.put('here')
    there.get()
