# Has terraform and a command show all that they were given, in the forms in which a log may have it. No value comes onto
# a command line or into an environment by what is written here.
@DECLARED@

variable "public" {
  type = string
}

variable "then" {
  type = string
}

locals {
  given = { @GIVEN@ }
  texts = { for name, value in local.given : name => try(tostring(value), jsonencode(value)) }
  told = {
    for name, text in local.texts : name => [
      text, jsonencode(text), jsonencode({ inside = text }), urlencode(text),
      base64encode(text), base64encode("x${text}"), base64encode("xx${text}x"),
    ] if name != "nested"
  }
}

resource "terraform_data" "refused" {
  for_each = { for name, texts in local.told : name => texts if var.then == "refuse" }
  lifecycle {
    precondition {
      condition     = var.public == ""
      error_message = "${var.public} is refused: ${join(" ", each.value)}"
    }
  }
}

resource "terraform_data" "telling" {
  input = [local.given, local.told, var.public]
  provisioner "local-exec" {
    interpreter = ["python3", "-c"]
    command     = <<-EOT
      import base64, json, os, sys, urllib.parse
      # @ON_COMMAND_LINES@
      print("@PRINTED@")
      for name, value in sorted(os.environ.items()):
          if name.startswith(("POOL_", "TASK_", "TF_VAR_")):
              raw = value.encode()
              print(name, value, json.dumps(value), json.dumps(value, ensure_ascii=False))
              print(name, urllib.parse.quote(value), urllib.parse.quote(value, safe=""), urllib.parse.quote_plus(value))
              print(name, *(base64.b64encode(before + raw).decode() for before in (b"", b"x", b"xx")))
      sys.stdout.flush()
      if "@THEN@" == "sleep":
          os.environ["@IN_ENVIRONMENTS@"] = "x"
          os.execlp("sleep", "sleep", "600")
      sys.exit(3 if "@THEN@" == "fail" else 0)
    EOT
  }
}

output "told" {
  value = local.told
}

output "hidden" {
  value     = @HIDDEN@
  sensitive = true
}
