"""Run MT-bench's first questions through the OpenAI client under several profiles, all in flight at once.

make serve                                                        # in another terminal
.venv/bin/python examples/mt_bench.py QUESTIONS.jsonl --out answers.json    # the file of the MT-bench release
"""

import argparse
import asyncio
import json
import time
from pathlib import Path

from openai import AsyncOpenAI


async def ask(client: AsyncOpenAI, model: str, question: str, profile: str, max_tokens: int) -> dict:
    """One chat completion under ``profile``; returns its text and token count."""
    answer = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=max_tokens,
        temperature=0,
        extra_body={"custom_params": {"moe_skip": profile}},
    )
    return {"text": answer.choices[0].message.content, "tokens": answer.usage.completion_tokens}


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", type=Path, help="JSONL with a list 'turns' in each line")
    parser.add_argument("--url", default="http://127.0.0.1:30000/v1")
    parser.add_argument("--profiles", default="full,fast")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    items = [json.loads(line) for line in args.questions.read_text().splitlines()]
    client = AsyncOpenAI(base_url=args.url, api_key="none")
    model = (await client.models.list()).data[0].id
    runs = {}
    for profile in args.profiles.split(","):
        begin = time.perf_counter()
        answers = await asyncio.gather(
            *(ask(client, model, item["turns"][0], profile, args.max_tokens) for item in items)
        )
        seconds = time.perf_counter() - begin
        tokens = sum(answer["tokens"] for answer in answers)
        runs[profile] = {"seconds": round(seconds, 2), "tokens": tokens, "answers": answers}
        print(f"{profile}: {len(answers)} answers, {tokens} tokens in {seconds:.1f} s ({tokens / seconds:.0f} tok/s)")
    for item, *answers in zip(items[:5], *(run["answers"] for run in runs.values()), strict=False):
        print("\nQ:", item["turns"][0][:160])
        for profile, answer in zip(runs, answers, strict=True):
            print(f"  {profile}: {answer['text'].strip()[:200]!r}")
    if args.out:
        args.out.write_text(json.dumps({"model": model, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
