"""The program as an MCP server, driven by the SDK's own client over stdio."""

import asyncio
import base64
import os
import subprocess
import sys
from pathlib import Path

from mcp import Client, StdioServerParameters

ASKED = {"prompt": "a red apple", "seed": 7, "width": 64, "height": 64, "num_inference_steps": 2}


def test_the_tools_make_plan_and_verify_a_picture(tmp_path):
    program = str(Path(sys.executable).with_name("mezzotint"))
    home = {
        "MEZZOTINT_HOME": os.environ.get("MEZZOTINT_HOME", str(tmp_path)),
        "PATH": os.environ["PATH"],
    }
    server = StdioServerParameters(command=program, args=["mcp"], env=home)

    async def talk():
        async with Client(server) as client:
            listed = await client.list_tools()
            models = await client.call_tool("models", {})
            planned = await client.call_tool("plan", ASKED)
            made = await client.call_tool("generate", ASKED)
            again = await client.call_tool("verify", {"image": made.content[0].data})
            broken = base64.b64encode(base64.b64decode(made.content[0].data) + b"x").decode()
            other = await client.call_tool("verify", {"image": broken})
            wrong = await client.call_tool("generate", {"promt": "a"})
        return [t.name for t in listed.tools], models, planned, made, again, other, wrong

    names, models, planned, made, again, other, wrong = asyncio.run(talk())
    assert names == ["generate", "plan", "verify", "models"]
    assert "plate" in [m["name"] for m in models.structured_content["models"]]
    assert planned.structured_content["plan"]
    assert (made.content[0].type, made.content[0].mime_type) == ("image", "image/png")
    script = (  # a process of its own: other tests set torch's threads, which are part of the recipe
        "import sys, mezzotint as mz; request = mz.GenerationRequest.from_dict(eval(sys.argv[1]));"
        "sys.stdout.buffer.write(mz.generate(request).images[0].bytes)"
    )
    own = subprocess.run(
        [sys.executable, "-c", script, repr(ASKED)], env=home, capture_output=True, check=True
    )
    assert base64.b64decode(made.content[0].data) == own.stdout
    assert again.structured_content["identical"] is True
    assert other.structured_content["identical"] is False
    assert wrong.is_error
    assert "did you mean 'prompt'" in wrong.content[0].text
