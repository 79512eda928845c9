variable "region" {
  type = string
}

variable "zones" {
  type = list(string)
}

variable "password" {
  type      = string
  sensitive = true
}

resource "terraform_data" "zone" {
  for_each = toset(var.zones)
  input    = "${var.region}${each.key}"
}

output "zones" {
  value = sort([for zone in terraform_data.zone : zone.output])
}

output "password_hash" {
  value = nonsensitive(sha256(var.password))
}
