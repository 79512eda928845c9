# A state that no compression makes small: it needs several Secrets.
resource "terraform_data" "noise" {
  input = join("", [
    for m in range(@THOUSANDS@) : join("", [for n in range(1000) : sha512("@TEXT@ ${m} ${n}")])
  ])
}
