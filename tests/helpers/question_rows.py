"""Random rows of annotated questions, as the tests of reading, writing and judging them need."""

from memreason_hf.steps import Step


WORDS = ("iron", "lead", "water", "the river", "Nile", "a moon", "tides", "Ötzi", "C++", "3.5 kg", "no-one", "“salt”")
LETTERS = "ABCDEFGHIJ"
TYPES = ("letters", "true_false", "yes_no", "number", "text")
FIXED = {"true_false": ("True", "False"), "yes_no": ("Yes", "No")}


def sentence(rng, low=2, high=7):
    """Some random words with a capital letter and a full stop."""
    words = " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))
    return words[0].upper() + words[1:] + "."


def random_steps(rng, most=4):
    kinds = ("memory", "reason", "step")
    return [{"kind": rng.choice(kinds), "text": sentence(rng)} for _ in range(rng.randint(0, most))]


def random_number(rng):
    """A number as a text, in one of the ways in which people write it."""
    value = rng.randint(-99_999, 9_999_999)
    return rng.choice(
        [str(value), f"{value:,}", f"{value / 8}", f"{abs(value)}/{rng.randint(1, 99)}", f"${abs(value)}"]
    )


def random_row(rng, answer_type, index):
    """A row of the schema; the question is unique by its index and lists its options."""
    question, options, accepted = f"Question {index} of {rng.randrange(10**6)}: {sentence(rng)[:-1]}?", {}, []
    if answer_type in FIXED:
        options = {label: label for label in FIXED[answer_type]}
        answer = rng.choice(FIXED[answer_type])
    elif answer_type == "letters":
        options = {letter: f"{sentence(rng)} {letter}{index}" for letter in LETTERS[: rng.randint(2, len(LETTERS))]}
        question += " Options: " + " ".join(f"{label}. {text}" for label, text in options.items())
        answer = rng.choice(list(options))
        accepted = rng.sample([label for label in options if label != answer], rng.randint(0, 1))
    elif answer_type == "number":
        answer, accepted = random_number(rng), [random_number(rng) for _ in range(rng.randint(0, 2))]
    else:
        answer, accepted = sentence(rng)[:-1], [sentence(rng)[:-1] for _ in range(rng.randint(0, 2))]
    return {
        "question": question,
        "options": [{"label": label, "text": text} for label, text in options.items()],
        "answer": answer,
        "steps": random_steps(rng),
        "accepted_answers": [other for other in dict.fromkeys(accepted) if other != answer],
        "answer_type": answer_type,
    }


def random_rows(rng, count, types=TYPES):
    return [random_row(rng, rng.choice(types), index) for index in range(count)]


def as_steps(row):
    return [Step(**step) for step in row["steps"]]
