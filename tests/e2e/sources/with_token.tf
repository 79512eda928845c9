# Says which of two tokens it was applied with; the value itself is taken out of the log.
variable "round" {}
resource "terraform_data" "token" {
  triggers_replace = var.round
  provisioner "local-exec" {
    command = "case $CLOUD_TOKEN in *-renewed) echo this is the renewed token;; *) echo this is the first token;; esac"
  }
}
