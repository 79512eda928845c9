# A state that no compression makes small: it needs several Secrets.
resource "terraform_data" "noise" {
  input = join("", [for n in range(@LINES@) : sha512("@TEXT@ ${n}")])
}
