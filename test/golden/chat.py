"""Conversations as transformers renders them by chat templates of every common make, and their ids, written to chat.json beside this file.

    python3 -m venv /tmp/golden && /tmp/golden/bin/pip install transformers==5.24.0 jinja2
    /tmp/golden/bin/python test/golden/chat.py
"""
import json
from pathlib import Path

from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

TEMPLATES = {
    "a line a message": """{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}""",
    "a system message of its own, where there is none": """{% for message in messages %}
{% if loop.first and message.role != 'system' %}
<|system|>You are a helpful assistant.<|end|>
{% endif %}
<|{{ message.role }}|>{{ message.content }}<|end|>
{% endfor %}
{% if add_generation_prompt %}
<|assistant|>
{% endif %}
""",
    "the system message within the first question, roles in turn": """{%- if messages[0]['role'] == 'system' -%}
  {%- set rest = messages[1:] -%}{%- set told = messages[0]['content'].strip() -%}
{%- else -%}
  {%- set rest = messages -%}{%- set told = false -%}
{%- endif -%}
{%- for m in rest -%}
  {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}
    {{ raise_exception('roles must take turns') }}
  {%- endif -%}
  {%- if m['role'] == 'user' -%}
    {{ bos_token + '[ASK] ' + ('(' + told + ') ' if told and loop.index0 == 0 else '') + m['content'] | trim + ' [/ASK]' }}
  {%- else -%}
    {{ ' ' + m['content'].strip() + eos_token }}
  {%- endif -%}
{%- endfor -%}""",
    "counted in a namespace, with filters": """{% set ns = namespace(asked=0, last='') %}
{% for m in messages %}
    {% if m.role == 'user' %}
        {% set ns.asked = ns.asked + 1 %}
        {% set ns.last = m.content %}
    {% endif %}
{{ ns.asked }}. {{ m.role | upper }}: {{ m.content | replace('order', 'parcel') | trim }}{{ '<|end|>' if not loop.last else '' }}
{% endfor %}
{{ messages | length }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ ns.last.split(' ') | first | tojson }} {{ (messages | map(attribute='role') | join(',')) }}
{% if add_generation_prompt %}<|assistant|>{% endif %}""",
    "by a macro, from the last message on": """{%- macro shown(m, i) -%}
<|{{ m.role }}|>{{ '%d' % i if false else i ~ ': ' ~ m.content.rstrip() }}<|end|>
{%- endmacro -%}
{%- for m in messages[::-1] %}{{ shown(m, loop.revindex) }}
{% endfor -%}
{{ 'tools' if tools is defined and tools else 'no tools' }}{% if not thinking | default(false) %} <|assistant|>{% endif -%}""",
    "parts of an answer cut away, in and not in": """{%- for m in messages -%}
{%- if m.role in ['user', 'system', 'a-tool'] -%}<|user|>{{ m.content }}
{%- elif '</think>' in m.content -%}<|assistant|>{{ m.content.split('</think>')[-1].lstrip('\\n') }}
{%- else -%}<|assistant|>{{ m.content | default('nothing', true) }}
{%- endif -%}<|end|>{{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt and messages[-1]['role'] != 'assistant' -%}<|assistant|>{%- endif -%}""",
}
CONVERSATIONS = [
    [{"role": "user", "content": "where is my order 407 ?"}],
    [
        {"role": "system", "content": "  Be brief.\n"},
        {"role": "user", "content": "Grüße, my kettle is \"broken\" 🙂\n\n  thank you"},
        {"role": "assistant", "content": "<think>a refund</think>\n\nwe have sent it "},
        {"role": "user", "content": "  it's not here & it is <late>\n"},
    ],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "assistant", "content": ""}],
    [{"role": "user", "content": ""}],
]

here = Path(__file__).parent
file = json.loads((here / "tokenizer.json").read_text())["tokenizers"][1]["file"]
t = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(file)), bos_token="<|user|>", eos_token="<|end|>")
out = []
for name, template in TEMPLATES.items():
    for messages in CONVERSATIONS:
        for generation in (True, False):
            row = {"name": name, "template": template, "messages": messages, "generation": generation}
            try:
                text = t.apply_chat_template(messages, chat_template=template, add_generation_prompt=generation, tokenize=False)
                row |= {"text": text, "ids": t(text, add_special_tokens=False)["input_ids"]}
            except TemplateError as error:
                row["refused"] = str(error)
            out.append(row)
(here / "chat.json").write_text(json.dumps(out) + "\n")
