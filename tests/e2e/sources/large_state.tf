# A state that no compression makes small: it needs several Secrets.
locals {
  lines = flatten([for m in range(@THOUSANDS@) : [for n in range(1000) : sha512("@TEXT@ ${m} ${n}")]])
}

resource "terraform_data" "noise" {
  input = join("", local.lines)
}
