"""Ask a running server the same question under three schedules, with the official OpenAI client.

make serve                         # in another terminal
.venv/bin/python examples/openai_client.py
"""

from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:30000/v1", api_key="none")
model = client.models.list().data[0].id

for hint in ("full", "fast", {"na": 1}):
    answer = client.chat.completions.with_raw_response.create(
        model=model,
        messages=[{"role": "user", "content": "What does the word river mean?"}],
        max_tokens=32,
        temperature=0,
        extra_body={"custom_params": {"moe_skip": hint}},
    )
    print(f"{hint!s:10} mean na {answer.headers['x-moe-skip-mean-na']:>4}: {answer.parse().choices[0].message.content}")
