# Says from where its provider runs, and what it could change there.
terraform {
  required_providers {
    time = { source = "hashicorp/time" }
  }
}
resource "time_static" "now" {}
resource "terraform_data" "look" {
  provisioner "local-exec" {
    command = <<-EOT
      there=$(cd -P .terraform/providers/*/hashicorp/time/*/* && pwd -P)
      echo "it runs from $there"
      touch "$there/new" 2> /dev/null || echo "nothing is added there"
      touch /var/lib/terrahalt/providers/new 2> /dev/null || echo "nothing is added to the mirror"
    EOT
  }
}
